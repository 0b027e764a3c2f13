# Ablation: the teacher knows captions only, like the student; it is the student's original.
_base_ = './densevlm_tiny_miniworld.py'
model = dict(
    teacher=dict(arch=_base_.student_arch, checkpoint=f'{_base_.weights}/pretrain_student/final.pth'),
)
