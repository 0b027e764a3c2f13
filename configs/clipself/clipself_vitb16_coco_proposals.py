# Regions are proposals of a region proposal network; teacher crops show half as much again around them.
_base_ = './clipself_vitb16_coco.py'
train_dataloader = dict(
    dataset=dict(
        type='densevlm_mm.BoxDataset',
        ann_file='annotations/coco_proposals.json',
        pipeline=[
            dict(type='densevlm_mm.LoadImage'),
            dict(type='densevlm_mm.ResizeLongestPad', size=1024),
            dict(type='densevlm_mm.SampleProposals', max_regions=20),
            dict(type='densevlm_mm.CropRegions', size=224, enlarge=1.5),
            dict(type='densevlm_mm.PackRegions'),
        ],
    )
)
