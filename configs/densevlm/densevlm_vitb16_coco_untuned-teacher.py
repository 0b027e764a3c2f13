# Ablation: the teacher is EVA02-CLIP-L/14-336 as published, not tuned for dense features.
_base_ = './densevlm_vitb16_coco.py'
model = dict(teacher=dict(checkpoint='checkpoints/EVA02_CLIP_L_336_psz14_s6B.pt'))
