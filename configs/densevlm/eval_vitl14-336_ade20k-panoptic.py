# Zero-shot region classification of any ViT-L/14-336 checkpoint on ADE20K panoptic validation, 150 classes.
_base_ = [
    '../_base_/models/region_classifier_vitb16.py',
    '../_base_/datasets/ade20k_panoptic_512.py',
    '../_base_/default_runtime.py',
]
model = dict(vlm=dict(arch='EVA02-CLIP-L-14-336'), eval_vocabulary='ade20k_panoptic')
load_regions = dict(_base_.load_regions, patch_size=14)
test_dataloader = dict(dataset=dict(pipeline=[*_base_.load_image, load_regions, _base_.pack]))
