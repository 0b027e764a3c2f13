# The twin of configs/clipself/clipself_vitl14-336_coco.py: the large model learns from itself.
_base_ = './clipself_tiny_miniworld.py'
model = dict(
    student=dict(arch=_base_.teacher_arch, checkpoint=f'{_base_.weights}/pretrain_teacher/final.pth'),
)
