_base_ = ['mmdet::mm_grounding_dino/grounding_dino_swin-t_pretrain_obj365.py', './_base_/densevlm_vitb16.py']

model = dict(
    data_preprocessor=_base_.pixels,
    backbone=dict(_base_.tower, out_indices=(5, 7, 11), strides=(8, 16, 32)),
    neck=dict(in_channels=[_base_.width] * 3),
)
