# Ablation: only regions of which the teacher is more than 50 % sure.
_base_ = './densevlm_tiny_miniworld.py'
model = dict(loss=dict(score_thr=0.5))
