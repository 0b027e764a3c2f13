# CLIPSelf's tower, tuned on COCO with proposals (on patches: eva_vitb16_coco_clipself_patches.pt).
_base_ = './fvit_vitb16_ov-coco_original.py'
model = dict(backbone=dict(checkpoint='checkpoints/eva_vitb16_coco_clipself_proposals.pt'))
