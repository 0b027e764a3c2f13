_base_ = ['mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py', './_base_/densevlm_vitb16.py']

model = dict(
    data_preprocessor=_base_.pixels,
    backbone=_base_.tower,
    panoptic_head=dict(in_channels=[_base_.width] * 4),
)
