# A tiny CLIP from captions alone, which speak of things far more than of stuff: this one is biased.
_base_ = [
    '../_base_/models/region_classifier_vitb16.py',
    '../_base_/models/tiny_vlms.py',
    '../_base_/datasets/miniworld.py',
    '../_base_/schedules/miniworld.py',
    '../_base_/default_runtime.py',
]
max_iters = 500
model = dict(
    _delete_=True,
    type='densevlm_mm.CLIPPretrainer',
    vlm=dict(arch=_base_.student_arch),
    eval_vocabulary=_base_.miniworld_vocabulary,
    eval_templates=_base_.miniworld_templates,
)
add_caption = dict(type='densevlm_mm.AddCaption', ann_file=f'{_base_.data_root}/annotations/captions_train2017.json')
train_dataloader = dict(batch_size=48, dataset=dict(pipeline=[*_base_.load_image, add_caption, _base_.pack]))
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
# unlike distillation, this trains the logit scale too, and lets it decay
optim_wrapper = dict(
    constructor='DefaultOptimWrapperConstructor',
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1 / 50, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', T_max=max_iters - 50, by_epoch=False, begin=50, end=max_iters),
]
default_hooks = dict(checkpoint=dict(interval=max_iters))
