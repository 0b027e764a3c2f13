# The same for the teacher.
_base_ = './eval_student_miniworld.py'
model = dict(vlm=dict(arch=_base_.teacher_arch))
