_base_ = ['mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py', './_base_/densevlm_vitb16.py']

model = dict(
    data_preprocessor=_base_.pixels,
    backbone=_base_.tower,
    decode_head=dict(in_channels=[_base_.width] * 4),
)
