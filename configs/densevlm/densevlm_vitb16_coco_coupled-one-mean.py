# Ablation: all regions are aligned over all classes, under one mean.
_base_ = './densevlm_vitb16_coco.py'
model = dict(loss=dict(thing_classes='all', mean='joint'))
