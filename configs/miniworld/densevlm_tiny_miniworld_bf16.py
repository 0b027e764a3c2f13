# The twin of configs/densevlm/densevlm_vitb16_coco_bf16.py.
_base_ = './densevlm_tiny_miniworld.py'
model = dict(teacher=dict(dtype='bfloat16'))
optim_wrapper = dict(type='densevlm_mm.AutocastOptimWrapper', dtype='bfloat16')
