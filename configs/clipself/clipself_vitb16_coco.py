# CLIPSelf ViT-B/16 on image patches of COCO: 8 GPUs x 2 images of 1024 px, gradients averaged over all 16.
#   bash tools/dist_train.sh configs/clipself/clipself_vitb16_coco.py 8
_base_ = [
    '../_base_/models/clipself_vitb16.py',
    '../_base_/datasets/coco_grid_crops_1024.py',
    '../_base_/datasets/coco_panoptic_1024.py',
    '../_base_/schedules/clipself_44358.py',
    '../_base_/default_runtime.py',
]
default_hooks = dict(checkpoint=dict(interval=7393))
