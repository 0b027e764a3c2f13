# Ablation: only regions of which the teacher is more than 50 % sure.
_base_ = './densevlm_vitb16_coco.py'
model = dict(loss=dict(score_thr=0.5))
