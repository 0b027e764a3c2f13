# The twin of configs/clipself/clipself_vitb16_coco_proposals.py. Proposals are boxes of objects and random ones:
#   A=data/miniworld/seed0/annotations
#   python tools/dataset_converters/make_pseudo_labels.py $A/instances_train2017.json $A/proposals_train2017.json \
#       --random-boxes 4
_base_ = './clipself_tiny_miniworld.py'
draw = dict(type='densevlm_mm.SampleProposals', max_regions=4, area_range=(4**2, 1024**2))
crop = dict(type='densevlm_mm.CropRegions', size=64, enlarge=1.5)
train_dataloader = dict(
    dataset=dict(
        type='densevlm_mm.BoxDataset',
        ann_file='annotations/proposals_train2017.json',
        pipeline=[*_base_.load_image, draw, crop, _base_.pack],
    )
)
