# The twin of configs/clipself/clipself_vitb16_coco_comparison.py: DenseVLM's grids.
_base_ = './clipself_tiny_miniworld.py'
grid = dict(type='densevlm_mm.SampleGridRegions', min_split=2, max_split=6, max_regions=4)
train_dataloader = dict(dataset=dict(pipeline=[*_base_.load_image, grid, _base_.crop, _base_.pack]))
