# COCO train2017 images without their annotations, each cut into a random grid of 2 to 6 rows and columns.
train_dataloader = dict(
    batch_size=16,
    num_workers=4,
    persistent_workers=True,
    pin_memory=True,
    drop_last=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='densevlm_mm.EpochSampler'),
    dataset=dict(
        type='densevlm_mm.ImageDataset',
        data_root='data/coco',
        ann_file='annotations/instances_train2017.json',
        data_prefix=dict(img_path='train2017'),
        pipeline=[
            dict(type='densevlm_mm.LoadImage'),
            dict(type='densevlm_mm.ResizeLongestPad', size=512),
            dict(type='densevlm_mm.SampleGridRegions', min_split=2, max_split=6),
            dict(type='densevlm_mm.PackRegions'),
        ],
    ),
)
