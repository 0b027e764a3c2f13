# The twin of configs/densevlm/densevlm_vitl14-336_coco.py: the student is as large as its teacher.
_base_ = './densevlm_tiny_miniworld.py'
model = dict(
    student=dict(
        arch={{_base_.teacher_arch}}, checkpoint=None, trainable_blocks=4
    )
)
