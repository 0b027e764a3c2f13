# COCO-Stuff 164k: 118,287 training and 5,000 validation images with labels of 171 classes.
vocabulary = 'coco_stuff'
crop_size = (384, 384)
load = dict(type='LoadImageFromFile')
load_labels = dict(type='densevlm_mm.LoadLabelMap')
pack = dict(type='PackSegInputs')

train_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='densevlm_mm.COCOStuffSegDataset',
        vocabulary=vocabulary,
        data_root='data/coco_stuff164k',
        data_prefix=dict(img_path='images/train2017', seg_map_path='annotations/train2017'),
        pipeline=[
            load,
            load_labels,
            dict(type='ResizeShortestEdge', scale=384, max_size=2560),
            dict(type='RandomCrop', crop_size=crop_size),
            dict(type='PhotoMetricDistortion'),
            dict(type='RandomFlip', prob=0.5),
            # only images far longer than wide are smaller than that
            dict(type='Pad', size=crop_size, pad_val=dict(img=(128, 128, 128), seg=255)),
            pack,
        ],
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='densevlm_mm.COCOStuffSegDataset',
        vocabulary=vocabulary,
        data_root='data/coco_stuff164k',
        data_prefix=dict(img_path='images/val2017', seg_map_path='annotations/val2017'),
        test_mode=True,
        # label maps keep their size
        pipeline=[load, dict(type='Resize', scale=(2560, 640), keep_ratio=True), load_labels, pack],
    ),
)
val_evaluator = dict(type='densevlm_mm.OVIoUMetric')
test_dataloader = val_dataloader
test_evaluator = val_evaluator
custom_hooks = [dict(type='densevlm_mm.VocabularyCheckHook')]
