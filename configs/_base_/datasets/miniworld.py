# The mini world, in COCO's layout: what the COCO configs do, at 64 px with tokens of 8 px.
data_root = '{{$MINIWORLD_DATA:data/miniworld/seed0}}'
load_image = [dict(type='densevlm_mm.LoadImage'), dict(type='densevlm_mm.ResizeLongestPad', size=64)]
load_regions = dict(type='densevlm_mm.LoadPanopticRegions', patch_size=8, area_range=(4**2, 1024**2))
pack = dict(type='densevlm_mm.PackRegions')

train_dataloader = dict(
    batch_size=32,
    num_workers=0,  # images this small load faster than a worker process can hand them over
    drop_last=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='densevlm_mm.EpochSampler'),
    dataset=dict(
        type='densevlm_mm.ImageDataset',
        data_root=data_root,
        ann_file='annotations/instances_train2017.json',
        data_prefix=dict(img_path='train2017'),
        pipeline=[*load_image, dict(type='densevlm_mm.SampleGridRegions', min_split=2, max_split=6), pack],
    ),
)
val_dataloader = dict(
    batch_size=50,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='densevlm_mm.PanopticRegionDataset',
        data_root=data_root,
        ann_file='annotations/panoptic_val2017.json',
        data_prefix=dict(img_path='val2017', seg_map_path='annotations/panoptic_val2017'),
        test_mode=True,
        pipeline=[*load_image, load_regions, pack],
    ),
)
val_evaluator = dict(type='densevlm_mm.RegionAccuracy')
val_cfg = dict(type='ValLoop')
test_dataloader = val_dataloader
test_evaluator = val_evaluator
test_cfg = dict(type='TestLoop')
