_base_ = ['mmseg::fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512.py', './_base_/densevlm_vitb16.py']

model = dict(
    pretrained=None,
    data_preprocessor=_base_.pixels,
    backbone=dict(_base_.tower, strides=(4, 8, 8, 8)),
    decode_head=dict(in_channels=_base_.width),
    auxiliary_head=dict(in_channels=_base_.width),
)
