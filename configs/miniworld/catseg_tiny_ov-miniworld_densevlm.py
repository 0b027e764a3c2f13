# The twin of configs/catseg/catseg_vitb16_coco-stuff_densevlm.py: the tower after DenseVLM.
_base_ = './catseg_tiny_ov-miniworld_original.py'
model = dict(vlm=dict(checkpoint=f'{_base_.weights}/densevlm/final.pth'))
