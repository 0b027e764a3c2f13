# Ablation: regions are aligned however unsure the teacher is.
_base_ = './densevlm_tiny_miniworld.py'
model = dict(loss=dict(score_thr=0.0))
