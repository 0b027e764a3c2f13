_base_ = ['mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py', './_base_/densevlm_vitb16.py']

model = dict(
    data_preprocessor=_base_.pixels,
    backbone=dict(_base_.tower, out_indices=(5, 7, 11), strides=(8, 16, 32)),
    neck=dict(in_channels=[_base_.width] * 3),
)
