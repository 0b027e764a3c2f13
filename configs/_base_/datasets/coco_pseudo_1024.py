# COCO train2017 images with up to 20 boxes, each labelled with one of 4,764 nouns by a CLIP.
train_dataloader = dict(
    batch_size=2,
    num_workers=4,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type='densevlm_mm.EpochSampler'),
    dataset=dict(
        type='densevlm_mm.BoxDataset',
        data_root='data/coco',
        ann_file='annotations/coco_pseudo_4764.json',
        data_prefix=dict(img_path='train2017'),
        pipeline=[
            dict(type='densevlm_mm.LoadImage'),
            dict(type='densevlm_mm.ResizeLongestPad', size=1024),
            dict(type='densevlm_mm.LoadLabeledBoxes', max_regions=20),
            dict(type='densevlm_mm.PackRegions'),
        ],
    ),
)
