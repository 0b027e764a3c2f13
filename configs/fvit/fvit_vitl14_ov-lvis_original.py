# F-ViT on OV-LVIS: 8 GPUs x 8 images of 896 px, EVA02-CLIP-L/14-336 as published. A larger beta favours rare classes.
#   bash tools/dist_train.sh configs/fvit/fvit_vitl14_ov-lvis_original.py 8
_base_ = ['./_base_/fvit_vitb16.py', './_base_/ov_lvis_1024.py', './_base_/schedule_48e.py', './_base_/runtime.py']
size = (896, 896)

model = dict(
    vocabulary=_base_.vocabulary,
    data_preprocessor=dict(pad_size_divisor=896),
    backbone=dict(
        arch='EVA02-CLIP-L-14-336',
        checkpoint='checkpoints/EVA02_CLIP_L_336_psz14_s6B.pt',
        out_indices=(6, 10, 14, 23),
    ),
    neck=[dict(_base_.model.neck[0], in_channels=1024), dict(_base_.model.neck[1], in_channels=[1024] * 4)],
    rpn_head=dict(
        type='densevlm_mm.NormedRPNHead',
        norm_cfg=_base_.norm_cfg,
        anchor_generator=dict(strides=[3.5, 7, 14, 28, 56]),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(featmap_strides=[3.5, 7, 14, 28]),
        bbox_head=dict(fc_out_channels=768, loss_cls=dict(background_weight=0.9)),
        mask_roi_extractor=dict(featmap_strides=[3.5, 7, 14, 28]),
        score_fusion=dict(alpha=0.1, beta=0.4, temperature=50.0),
    ),
    test_cfg=dict(rcnn=dict(score_thr=1e-4, nms=dict(iou_threshold=0.5), max_per_img=300)),
)
resize = [
    dict(type='RandomResize', scale=size, ratio_range=(0.1, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=size, recompute_bbox=True, allow_negative_crop=True),
]
train_dataloader = dict(dataset=dict(pipeline=[*_base_.load, *resize, *_base_.finish]))
val_dataloader = dict(
    dataset=dict(pipeline=[_base_.load[0], dict(type='Resize', scale=size, keep_ratio=True), _base_.pack_test])
)
test_dataloader = val_dataloader
