# CLIPSelf as DenseVLM is compared with it: 4 GPUs x 16 images of 512 px, and DenseVLM's grids.
#   bash tools/dist_train.sh configs/clipself/clipself_vitb16_coco_comparison.py 4
_base_ = [
    '../_base_/models/clipself_vitb16.py',
    '../_base_/datasets/coco_grid_512.py',
    '../_base_/datasets/coco_panoptic_512.py',
    '../_base_/schedules/densevlm_11088.py',
    '../_base_/default_runtime.py',
]
grid = dict(type='densevlm_mm.SampleGridRegions', min_split=2, max_split=6)
crop = dict(type='densevlm_mm.CropRegions', size=224)

train_dataloader = dict(dataset=dict(pipeline=[*_base_.load_image, grid, crop, _base_.pack]))
