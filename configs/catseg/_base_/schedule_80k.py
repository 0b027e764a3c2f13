# 80,000 steps of 4 images, one on each of 4 GPUs, in fp32; the towers learn at a hundredth of the rate.
_base_ = 'mmseg::_base_/default_runtime.py'

max_iters = 80000
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=5000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-4, betas=(0.9, 0.999), weight_decay=1e-4),
    paramwise_cfg=dict(custom_keys={'vlm.': dict(lr_mult=0.01)}, norm_decay_mult=0.0),
    clip_grad=dict(max_norm=0.01, norm_type=2),
)
param_scheduler = [dict(type='CosineAnnealingLR', eta_min=0.0, T_max=max_iters, by_epoch=False, begin=0, end=max_iters)]
auto_scale_lr = dict(enable=True, base_batch_size=4)
default_hooks = dict(
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=5000, max_keep_ckpts=3),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    vlm_meta=dict(type='densevlm_mm.VLMMetaHook'),
)
randomness = dict(seed=0)
