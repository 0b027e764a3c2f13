# Region classification on COCO panoptic val2017 at the resolution of CLIPSelf's paper, 1024 px.
load_image = [dict(type='densevlm_mm.LoadImage'), dict(type='densevlm_mm.ResizeLongestPad', size=1024)]
load_regions = dict(type='densevlm_mm.LoadPanopticRegions', patch_size=16)
pack = dict(type='densevlm_mm.PackRegions')

val_dataloader = dict(
    batch_size=2,
    num_workers=4,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='densevlm_mm.PanopticRegionDataset',
        data_root='data/coco',
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
