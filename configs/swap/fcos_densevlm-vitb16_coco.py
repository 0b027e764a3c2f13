_base_ = ['mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', './_base_/densevlm_vitb16.py']

model = dict(
    data_preprocessor=_base_.pixels,
    backbone=_base_.tower,
    neck=dict(in_channels=[_base_.width] * 4),
)
