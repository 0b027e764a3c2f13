# Retrieval on COCO val2017: 5,000 images, the middle of each, with five captions.
test_dataloader = dict(
    batch_size=64,
    num_workers=4,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='densevlm_mm.CaptionDataset',
        data_root='data/coco',
        ann_file='annotations/captions_val2017.json',
        data_prefix=dict(img_path='val2017'),
        test_mode=True,
        pipeline=[
            dict(type='densevlm_mm.LoadImage'),
            dict(type='densevlm_mm.ResizeShortestCrop', size=224),
            dict(type='densevlm_mm.PackCaptions'),
        ],
    ),
)
test_evaluator = dict(type='densevlm_mm.CaptionRetrieval')
test_cfg = dict(type='TestLoop')
