# Zero-shot region classification of any ViT-B/16 checkpoint on COCO panoptic val2017.
#   python tools/test.py configs/densevlm/eval_vitb16_coco-panoptic.py CHECKPOINT
_base_ = [
    '../_base_/models/region_classifier_vitb16.py',
    '../_base_/datasets/coco_panoptic_512.py',
    '../_base_/default_runtime.py',
]
val_dataloader = val_evaluator = val_cfg = None
