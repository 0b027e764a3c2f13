# Zero-shot region classification of a student of the mini world: the twin of the COCO and ADE20K evaluations.
_base_ = [
    '../_base_/models/region_classifier_vitb16.py',
    '../_base_/models/tiny_vlms.py',
    '../_base_/datasets/miniworld.py',
    '../_base_/default_runtime.py',
]
model = dict(
    vlm=dict(_delete_=True, arch=_base_.student_arch),
    eval_vocabulary=dict(_delete_=True, **_base_.miniworld_vocabulary),
    eval_templates=_base_.miniworld_templates,
)
train_dataloader = val_dataloader = val_evaluator = val_cfg = None
