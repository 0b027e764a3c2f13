# 46,100 steps of 256 images, a tenth of the rate after 80, 90 and 95 % of them.
max_iters = 46100
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters // 4)
val_cfg = dict(type='ValLoop', fp16=True)
test_cfg = dict(type='TestLoop', fp16=True)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.0032 / 0.36, by_epoch=False, begin=0, end=100),
    dict(type='MultiStepLR', by_epoch=False, begin=0, end=max_iters, milestones=[36880, 41490, 43795], gamma=0.1),
]
