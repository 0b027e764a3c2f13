# The twin of configs/clipself/clipself_vitb16_coco.py: same code, tiny model, generated data.
_base_ = [
    '../_base_/models/clipself_vitb16.py',
    '../_base_/models/tiny_vlms.py',
    '../_base_/datasets/miniworld.py',
    '../_base_/schedules/miniworld.py',
    '../_base_/default_runtime.py',
]
weights = '{{$MINIWORLD_WEIGHTS:work_dirs/miniworld/seed0}}'
model = dict(
    student=dict(
        _delete_=True,
        arch=_base_.student_arch,
        checkpoint=f'{weights}/pretrain_student/final.pth',
        trainable_blocks=4,
    ),
    eval_vocabulary=dict(_delete_=True, **_base_.miniworld_vocabulary),
    eval_templates=_base_.miniworld_templates,
)
crop = dict(type='densevlm_mm.CropRegions', size=64)
grid = dict(type='densevlm_mm.SampleGridRegions', min_split=1, max_split=6, max_regions=4)
train_dataloader = dict(dataset=dict(pipeline=[*_base_.load_image, grid, crop, _base_.pack]))
default_hooks = dict(checkpoint=dict(interval=200), logger=dict(interval=20))
# the tables show what training does by itself: no blending with the original
custom_hooks = [dict(type='densevlm_mm.WeightEnsembleHook', alpha=1.0)]
