# The twin of configs/densevlm/densevlm_vitb16_coco_teacher-cache.py: the teacher's features are kept on disk.
_base_ = './densevlm_tiny_miniworld.py'
model = dict(teacher_cache=dict(folder='data/teacher_cache'))
train_dataloader = dict(
    dataset=dict(
        pipeline=[
            *_base_.train_dataloader.dataset.pipeline[:-1],
            dict(type='densevlm_mm.PackRegions', fingerprint=True),
        ]
    )
)
