# CLIPSelf's tower, tuned on patches of LVIS images.
_base_ = './fvit_vitl14_ov-lvis_original.py'
model = dict(backbone=dict(checkpoint='checkpoints/eva_vitl14_lvis_clipself_patches.pt'))
