# CLIPSelf's tower, tuned on COCO with proposals (on patches: eva_vitl14_coco_clipself_patches.pt).
_base_ = './fvit_vitl14_ov-coco_original.py'
model = dict(backbone=dict(checkpoint='checkpoints/eva_vitl14_coco_clipself_proposals.pt'))
