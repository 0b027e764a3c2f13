# The twin of configs/densevlm/densevlm_vitl14-336_coco.py: the student is as large as its teacher.
_base_ = './densevlm_tiny_miniworld.py'
model = dict(
    # a real large student starts from a CLIP of its own; here the blocks start at random
    student=dict(_delete_=True, arch=_base_.teacher_arch, checkpoint=None, trainable_blocks=4)
)
