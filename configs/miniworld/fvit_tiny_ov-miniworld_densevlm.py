# The twin of configs/fvit/fvit_vitb16_ov-coco_densevlm.py: the tower after DenseVLM.
_base_ = './fvit_tiny_ov-miniworld_original.py'
model = dict(backbone=dict(checkpoint=f'{_base_.weights}/densevlm/final.pth'))
