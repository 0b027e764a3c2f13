# DenseVLM's tower, as its authors publish it, in the place of the original.
_base_ = './fvit_vitb16_ov-coco_original.py'
model = dict(backbone=dict(checkpoint='checkpoints/densevlm_coco_6_save6_512_eva_vib16_12layers.pt'))
