# The main recipe with the teacher's features kept on disk: 56 GB, written in the first epoch or beforehand by
#   python tools/misc/build_teacher_cache.py configs/densevlm/densevlm_vitb16_coco_teacher-cache.py
_base_ = './densevlm_vitb16_coco.py'
model = dict(teacher_cache=dict(folder='data/teacher_cache'))
train_dataloader = dict(
    dataset=dict(
        pipeline=[
            *_base_.train_dataloader.dataset.pipeline[:-1],
            dict(type='densevlm_mm.PackRegions', fingerprint=True),
        ]
    )
)
