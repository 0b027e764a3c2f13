# RegionCLIP's pseudo-labels in CLIPSelf's setting: 8 GPUs x 2 images of 1024 px.
#   bash tools/dist_train.sh configs/regionclip/regionclip_vitb16_coco.py 8
_base_ = [
    '../_base_/models/regionclip_vitb16.py',
    '../_base_/datasets/coco_pseudo_512.py',
    '../_base_/datasets/coco_panoptic_512.py',
    '../_base_/schedules/clipself_44358.py',
    '../_base_/default_runtime.py',
]
resize = [dict(type='densevlm_mm.LoadImage'), dict(type='densevlm_mm.ResizeLongestPad', size=1024)]

train_dataloader = dict(batch_size=2, dataset=dict(pipeline=[*resize, _base_.load_boxes, _base_.pack]))
val_dataloader = dict(batch_size=2, dataset=dict(pipeline=[*resize, _base_.load_regions, _base_.pack]))
test_dataloader = val_dataloader
default_hooks = dict(checkpoint=dict(interval=7393))
