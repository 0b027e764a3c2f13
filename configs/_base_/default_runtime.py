default_scope = 'mmengine'
custom_imports = dict(imports=['densevlm_mm.registry'], allow_failed_imports=False)

default_hooks = dict(
    runtime_info=dict(type='RuntimeInfoHook'),
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=1848, max_keep_ckpts=2),
    vlm_meta=dict(type='densevlm_mm.VLMMetaHook'),
    bad_images=dict(type='densevlm_mm.BadImageHook'),
    # the sampler is told its epoch by the training loop
    sampler_seed=None,
)
log_processor = dict(by_epoch=False, window_size=50)
log_level = 'INFO'
# an evaluation on one process may take longer than the usual 30 minutes
env_cfg = dict(cudnn_benchmark=True, dist_cfg=dict(backend='nccl', timeout=7200))
randomness = dict(seed=0)
load_from = None
resume = False
