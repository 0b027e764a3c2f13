# F-VLM on OV-LVIS: 32 GPUs x 8 images of 1024 px, SGD.
#   bash tools/dist_train.sh configs/fvit/fvlm_rn50x64_ov-lvis.py 8    # on each of 4 nodes
_base_ = ['./_base_/fvlm_rn50x64.py', './_base_/ov_lvis_1024.py', './_base_/schedule_46k.py', './_base_/runtime.py']

model = dict(vocabulary=_base_.vocabulary, data_preprocessor=dict(pad_size_divisor=1024))
train_dataloader = dict(sampler=dict(type='InfiniteSampler'))
optim_wrapper = dict(
    _delete_=True,
    type='AmpOptimWrapper',
    dtype='float16',
    loss_scale='dynamic',
    optimizer=dict(type='SGD', lr=0.36, momentum=0.9, weight_decay=1e-4),
    paramwise_cfg=dict(norm_decay_mult=0.0, custom_keys={'temperature': dict(decay_mult=0.0)}),
)
auto_scale_lr = dict(base_batch_size=256)
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=_base_.max_iters // 4))
log_processor = dict(by_epoch=False)
