# The twin of configs/clipself/clipself_vitb16_coco_multiscale.py.
_base_ = './clipself_tiny_miniworld.py'
model = dict(multiscale=(32, 48, 64))
