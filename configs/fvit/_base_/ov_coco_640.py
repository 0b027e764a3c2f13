# OV-COCO: training sees boxes of 48 base classes; 4,836 validation images hold these and 17 novel ones.
vocabulary = 'ov_coco_65'
size = (640, 640)
# large scale jittering: between a tenth and twice the size, and a piece of it
resize = [
    dict(type='RandomResize', scale=size, ratio_range=(0.1, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=size, recompute_bbox=True, allow_negative_crop=True),
]
load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)]
finish = [
    dict(type='FilterAnnotations', min_gt_bbox_wh=(1e-2, 1e-2)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
# without annotations: the metric reads them from their file
pack_test = dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))

train_dataloader = dict(
    batch_size=8,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='densevlm_mm.OVCocoDataset',
        vocabulary=vocabulary,
        data_root='data/coco',
        ann_file='annotations/instances_train2017_base.json',
        data_prefix=dict(img='train2017'),
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
        pipeline=[*load, *resize, *finish],
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='densevlm_mm.OVCocoDataset',
        vocabulary=vocabulary,
        data_root='data/coco',
        ann_file='annotations/instances_val2017_all.json',
        data_prefix=dict(img='val2017'),
        test_mode=True,
        pipeline=[load[0], dict(type='Resize', scale=size, keep_ratio=True), pack_test],
    ),
)
val_evaluator = dict(
    type='densevlm_mm.OVDetectionMetric', ann_file='data/coco/annotations/instances_val2017_all.json', metric='bbox'
)
test_dataloader = val_dataloader
test_evaluator = val_evaluator
custom_hooks = [dict(type='densevlm_mm.VocabularyCheckHook')]
