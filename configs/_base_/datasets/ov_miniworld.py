# The mini world for open-vocabulary detection: training sees boxes of 7 base classes, and 3 novel ones that have none.
data_root = '{{$MINIWORLD_DATA:data/miniworld/seed0}}'
vocabulary = f'{data_root}/annotations/vocabulary_ov.json'
size = (96, 96)
load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)]
resize = dict(type='Resize', scale=size, keep_ratio=True)
# without annotations: the metric reads them from their file
pack_test = dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))

train_dataloader = dict(
    batch_size=16,
    num_workers=0,  # images this small load faster than a worker process can hand them over
    sampler=dict(type='InfiniteSampler'),
    dataset=dict(
        type='densevlm_mm.OVCocoDataset',
        vocabulary=vocabulary,
        data_root=data_root,
        ann_file='annotations/instances_train2017_ov.json',
        data_prefix=dict(img='train2017'),
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=[*load, resize, dict(type='RandomFlip', prob=0.5), dict(type='PackDetInputs')],
    ),
)
val_dataloader = dict(
    batch_size=20,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='densevlm_mm.OVCocoDataset',
        vocabulary=vocabulary,
        data_root=data_root,
        ann_file='annotations/instances_val2017_ov.json',
        data_prefix=dict(img='val2017'),
        test_mode=True,
        pipeline=[load[0], resize, pack_test],
    ),
)
val_evaluator = dict(
    type='densevlm_mm.OVDetectionMetric', ann_file=f'{data_root}/annotations/instances_val2017_ov.json', metric='bbox'
)
test_dataloader = val_dataloader
test_evaluator = val_evaluator
custom_hooks = [dict(type='densevlm_mm.VocabularyCheckHook')]
