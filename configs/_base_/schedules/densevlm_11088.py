# 11,088 steps: 6 epochs of COCO train2017 at a global batch of 64.
max_iters = 11088
warmup_iters = 1000
train_cfg = dict(type='densevlm_mm.ResumableTrainLoop', max_iters=max_iters, val_interval=1848)
optim_wrapper = dict(
    type='AmpOptimWrapper',
    dtype='float16',
    loss_scale='dynamic',
    optimizer=dict(type='AdamW', lr=1e-5, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1, fused=True),
    constructor='densevlm_mm.DecayGroups',
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1 / warmup_iters, by_epoch=False, begin=0, end=warmup_iters),
    dict(type='CosineAnnealingLR', T_max=max_iters - warmup_iters, by_epoch=False, begin=warmup_iters, end=max_iters),
]
auto_scale_lr = dict(base_batch_size=64)
