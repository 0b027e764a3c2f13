# A wider tiny CLIP that also sees labelled regions of things and of stuff: the stronger VLM that DenseVLM asks for.
_base_ = './pretrain_student_miniworld.py'
max_iters = 400
model = dict(vlm=dict(arch=_base_.teacher_arch), caption_weight=0.3, region_weight=1.0)
train_dataloader = dict(
    batch_size=48,
    dataset=dict(
        type='densevlm_mm.PanopticRegionDataset',
        ann_file='annotations/panoptic_train2017.json',
        data_prefix=dict(seg_map_path='annotations/panoptic_train2017'),
        pipeline=[*_base_.load_image, _base_.load_regions, _base_.add_caption, _base_.pack],
    ),
)
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=1 / 50, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', T_max=max_iters - 50, by_epoch=False, begin=50, end=max_iters),
]
default_hooks = dict(checkpoint=dict(interval=max_iters))
