# DenseVLM's tower, trained by densevlm_vitl14-336_coco and published (docs/checkpoints.md).
_base_ = './fvit_vitl14_ov-coco_original.py'
model = dict(backbone=dict(checkpoint='checkpoints/densevlm_vitl14-336.pth'))
