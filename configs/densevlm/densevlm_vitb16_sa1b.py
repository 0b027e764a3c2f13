# DenseVLM ViT-B/16 on SA-1B: the recipe of COCO, in whose 11,088 steps it sees 709,632 of about 11 million images.
#   bash tools/dist_train.sh configs/densevlm/densevlm_vitb16_sa1b.py 4
_base_ = [
    '../_base_/models/densevlm_vitb16.py',
    '../_base_/datasets/sa1b_grid_512.py',
    '../_base_/datasets/coco_panoptic_512.py',
    '../_base_/schedules/densevlm_11088.py',
    '../_base_/default_runtime.py',
]
