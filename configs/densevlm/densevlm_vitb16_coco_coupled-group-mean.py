# Ablation: things are aligned over all classes, as stuff is; each group keeps a mean of its own.
_base_ = './densevlm_vitb16_coco.py'
model = dict(loss=dict(thing_classes='all'))
