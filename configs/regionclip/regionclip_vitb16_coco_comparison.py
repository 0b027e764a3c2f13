# RegionCLIP as DenseVLM is compared with it: 4 GPUs x 16 images of 512 px.
#   bash tools/dist_train.sh configs/regionclip/regionclip_vitb16_coco_comparison.py 4
_base_ = [
    '../_base_/models/regionclip_vitb16.py',
    '../_base_/datasets/coco_pseudo_512.py',
    '../_base_/datasets/coco_panoptic_512.py',
    '../_base_/schedules/densevlm_11088.py',
    '../_base_/default_runtime.py',
]
