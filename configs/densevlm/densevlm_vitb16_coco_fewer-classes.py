# Ablation: the vocabulary is COCO's 133 panoptic classes, those of the evaluation.
_base_ = './densevlm_vitb16_coco.py'
model = dict(vocabulary='coco_panoptic')
