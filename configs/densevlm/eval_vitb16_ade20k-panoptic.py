# Zero-shot region classification of any ViT-B/16 checkpoint on ADE20K panoptic validation, 150 classes.
#   python tools/test.py configs/densevlm/eval_vitb16_ade20k-panoptic.py CHECKPOINT
_base_ = [
    '../_base_/models/region_classifier_vitb16.py',
    '../_base_/datasets/ade20k_panoptic_512.py',
    '../_base_/default_runtime.py',
]
model = dict(eval_vocabulary='ade20k_panoptic')
