# fp16 and AdamW on 8 GPUs x 8 images, and what every run needs.
_base_ = 'mmdet::_base_/default_runtime.py'

optim_wrapper = dict(
    type='AmpOptimWrapper',
    dtype='float16',
    loss_scale=512.0,  # a float, so that it stays
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.1),
    # the classifier's temperature is a scalar of 50, which decay alone would pull to 30 in 48 epochs
    paramwise_cfg=dict(custom_keys={'temperature': dict(decay_mult=0.0)}),
    clip_grad=dict(max_norm=1.0, norm_type=2),
)
auto_scale_lr = dict(enable=True, base_batch_size=64)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3))
randomness = dict(seed=0)
