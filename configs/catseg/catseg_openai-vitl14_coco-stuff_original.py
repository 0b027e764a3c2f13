# The published CAT-Seg: OpenAI's CLIP ViT-L/14-336, its class token in the last block, q and v of both towers.
#   bash tools/dist_train.sh configs/catseg/catseg_openai-vitl14_coco-stuff_original.py 4
_base_ = './catseg_vitl14_coco-stuff_original.py'

model = dict(
    vlm=dict(arch='ViT-L-14-336-quickgelu', checkpoint='checkpoints/ViT-L-14-336px.pt'),
    finetune_text='qv',
    normalize_dense=False,
    class_token_residual=True,
)
