# Training-free segmentation of the mini world by a student: the twin of configs/training_free.
#   python tools/test.py configs/miniworld/segment_tiny_miniworld.py CHECKPOINT --cfg-options model.vlm.dense_mode=qq
_base_ = [
    '../_base_/models/tiny_vlms.py',
    '../_base_/datasets/semantic_miniworld.py',
    '../_base_/default_runtime.py',
]
model = dict(
    type='densevlm_mm.TrainingFreeSegmentor',
    vlm=dict(arch=_base_.student_arch, dense_mode='value'),
    vocabulary=_base_.vocabulary,
    templates=_base_.miniworld_templates,
    # images are one window, the size that the tiny CLIP was trained on; so is the scale
    window=64,
    stride=64,
    logit_scale=15.0,
)
