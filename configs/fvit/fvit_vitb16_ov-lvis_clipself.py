# CLIPSelf's tower, tuned on patches of LVIS images.
_base_ = './fvit_vitb16_ov-lvis_original.py'
model = dict(backbone=dict(checkpoint='checkpoints/eva_vitb16_lvis_clipself_patches.pt'))
