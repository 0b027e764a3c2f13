# COCO train2017 images with up to 20 boxes, each labelled with one of 4,764 nouns by a CLIP.
_base_ = './coco_grid_512.py'
load_boxes = dict(type='densevlm_mm.LoadLabeledBoxes', max_regions=20)

train_dataloader = dict(
    dataset=dict(
        type='densevlm_mm.BoxDataset',
        ann_file='annotations/coco_pseudo_4764.json',
        pipeline=[
            dict(type='densevlm_mm.LoadImage'),
            dict(type='densevlm_mm.ResizeLongestPad', size=512),
            load_boxes,
            dict(type='densevlm_mm.PackRegions'),
        ],
    )
)
