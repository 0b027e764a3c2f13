_base_ = ['mmseg::upernet/upernet_r50_4xb4-80k_ade20k-512x512.py', './_base_/densevlm_vitb16.py']

model = dict(
    pretrained=None,
    data_preprocessor=_base_.pixels,
    backbone=_base_.tower,
    decode_head=dict(in_channels=[_base_.width] * 4),
    auxiliary_head=dict(in_channels=_base_.width),
)
