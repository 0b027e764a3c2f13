# DenseVLM ViT-B/16 on COCO: 4 GPUs x 16 images, gradients averaged over all 64.
#   bash tools/dist_train.sh configs/densevlm/densevlm_vitb16_coco.py 4
_base_ = [
    '../_base_/models/densevlm_vitb16.py',
    '../_base_/datasets/coco_grid_512.py',
    '../_base_/datasets/coco_panoptic_512.py',
    '../_base_/schedules/densevlm_11088.py',
    '../_base_/default_runtime.py',
]
