# Regions are proposals of a region proposal network; teacher crops show half as much again around them.
_base_ = './clipself_vitb16_coco.py'
draw = dict(type='densevlm_mm.SampleProposals', max_regions=20)
crop = dict(type='densevlm_mm.CropRegions', size=224, enlarge=1.5)

train_dataloader = dict(
    dataset=dict(
        type='densevlm_mm.BoxDataset',
        ann_file='annotations/coco_proposals.json',
        pipeline=[*_base_.resize, draw, crop, _base_.pack],
    )
)
