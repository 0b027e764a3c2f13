# RegionCLIP's pseudo-labels in CLIPSelf's setting: 8 GPUs x 2 images of 1024 px.
#   bash tools/dist_train.sh configs/regionclip/regionclip_vitb16_coco.py 8
_base_ = [
    '../_base_/models/regionclip_vitb16.py',
    '../_base_/datasets/coco_pseudo_1024.py',
    '../_base_/datasets/coco_panoptic_1024.py',
    '../_base_/schedules/clipself_44358.py',
    '../_base_/default_runtime.py',
]
default_hooks = dict(checkpoint=dict(interval=7393))
