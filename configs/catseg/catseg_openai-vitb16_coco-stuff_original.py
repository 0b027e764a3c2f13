# The published CAT-Seg: OpenAI's CLIP ViT-B/16, its class token in the last block, q and v of both towers.
#   bash tools/dist_train.sh configs/catseg/catseg_openai-vitb16_coco-stuff_original.py 4
_base_ = './catseg_vitb16_coco-stuff_original.py'

model = dict(
    vlm=dict(arch='ViT-B-16-quickgelu', checkpoint='checkpoints/ViT-B-16.pt'),
    finetune_text='qv',
    normalize_dense=False,
    class_token_residual=True,
)
