# COCO train2017 images without annotations: up to 20 cells of a random grid of 1 to 6 rows and columns, with crops.
train_dataloader = dict(
    batch_size=2,
    num_workers=4,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type='densevlm_mm.EpochSampler'),
    dataset=dict(
        type='densevlm_mm.ImageDataset',
        data_root='data/coco',
        ann_file='annotations/instances_train2017.json',
        data_prefix=dict(img_path='train2017'),
        pipeline=[
            dict(type='densevlm_mm.LoadImage'),
            dict(type='densevlm_mm.ResizeLongestPad', size=1024),
            dict(type='densevlm_mm.SampleGridRegions', min_split=1, max_split=6, max_regions=20),
            dict(type='densevlm_mm.CropRegions', size=224),
            dict(type='densevlm_mm.PackRegions'),
        ],
    ),
)
