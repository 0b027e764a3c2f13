# After DeCLIP, ViT-B/16 on COCO: 8 GPUs x 2 images of 560 px, 35 x 35 tokens.
#   bash tools/dist_train.sh configs/declip/declip_vitb16_coco.py 8
_base_ = [
    '../_base_/models/declip_vitb16.py',
    '../_base_/datasets/coco_grid_512.py',
    '../_base_/datasets/coco_panoptic_512.py',
    '../_base_/schedules/clipself_44358.py',
    '../_base_/default_runtime.py',
]
resize = [dict(type='densevlm_mm.LoadImage'), dict(type='densevlm_mm.ResizeLongestPad', size=560)]
grid = dict(type='densevlm_mm.SampleGridRegions', min_split=1, max_split=6, max_regions=20)
crop = dict(type='densevlm_mm.CropRegions', size=224)

train_dataloader = dict(batch_size=2, dataset=dict(pipeline=[*resize, grid, crop, _base_.pack]))
val_dataloader = dict(dataset=dict(pipeline=[*resize, _base_.load_regions, _base_.pack]))
test_dataloader = val_dataloader
default_hooks = dict(checkpoint=dict(interval=7393))
