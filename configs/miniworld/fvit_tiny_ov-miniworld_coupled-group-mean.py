# The tower after the ablation of DenseVLM that aligns things over all classes as well.
_base_ = './fvit_tiny_ov-miniworld_original.py'
model = dict(backbone=dict(checkpoint=f'{_base_.weights}/densevlm_coupled-group-mean/final.pth'))
