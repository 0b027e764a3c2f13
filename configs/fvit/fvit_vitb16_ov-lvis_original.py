# F-ViT on OV-LVIS: 8 GPUs x 8 images of 1024 px, EVA02-CLIP-B/16 as published.
#   bash tools/dist_train.sh configs/fvit/fvit_vitb16_ov-lvis_original.py 8
_base_ = ['./_base_/fvit_vitb16.py', './_base_/ov_lvis_1024.py', './_base_/schedule_48e.py', './_base_/runtime.py']

model = dict(
    vocabulary=_base_.vocabulary,
    data_preprocessor=dict(pad_size_divisor=1024),
    rpn_head=dict(type='densevlm_mm.NormedRPNHead', norm_cfg=_base_.norm_cfg),
    roi_head=dict(
        bbox_head=dict(loss_cls=dict(background_weight=0.9)),
        score_fusion=dict(alpha=0.1, beta=0.6, temperature=50.0),
    ),
    test_cfg=dict(rcnn=dict(score_thr=1e-4, nms=dict(iou_threshold=0.5), max_per_img=300)),
)
