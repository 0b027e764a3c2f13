# DenseVLM's tower, trained by densevlm_vitl14-336_coco and published (docs/checkpoints.md).
_base_ = './catseg_vitl14_coco-stuff_original.py'
model = dict(vlm=dict(checkpoint='checkpoints/densevlm_vitl14-336.pth'))
