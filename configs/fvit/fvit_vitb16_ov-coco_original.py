# F-ViT on OV-COCO: 8 GPUs x 8 images of 640 px, EVA02-CLIP-B/16 as published.
#   bash tools/dist_train.sh configs/fvit/fvit_vitb16_ov-coco_original.py 8
_base_ = ['./_base_/fvit_vitb16.py', './_base_/ov_coco_640.py', './_base_/schedule_3e.py', './_base_/runtime.py']

model = dict(
    vocabulary=_base_.vocabulary,
    data_preprocessor=dict(pad_size_divisor=640, pad_mask=False),
    roi_head=dict(
        bbox_head=dict(loss_cls=dict(background_weight=0.6)),
        mask_roi_extractor=None,
        mask_head=None,
        score_fusion=dict(alpha=0.1, beta=0.8, temperature=75.0),
    ),
    train_cfg=dict(rcnn=dict(assigner=dict(match_low_quality=False))),
    test_cfg=dict(rcnn=dict(score_thr=0.01, nms=dict(iou_threshold=0.4), max_per_img=100)),
)
