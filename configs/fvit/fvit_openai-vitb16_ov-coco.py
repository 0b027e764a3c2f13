# F-ViT on OV-COCO with OpenAI's CLIP ViT-B/16 as published, and the mean and std of the images that it was trained on.
#   bash tools/dist_train.sh configs/fvit/fvit_openai-vitb16_ov-coco.py 8
_base_ = './fvit_vitb16_ov-coco_original.py'

model = dict(
    data_preprocessor=dict(mean=[122.771, 116.746, 104.094], std=[68.501, 66.632, 70.323]),
    backbone=dict(arch='ViT-B-16-quickgelu', checkpoint='checkpoints/ViT-B-16.pt'),
)
