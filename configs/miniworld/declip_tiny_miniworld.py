# The twin of configs/declip/declip_vitb16_coco.py. The mini world's teacher stands in for DINOv2.
_base_ = [
    '../_base_/models/declip_vitb16.py',
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
        dense_mode='csa',
        trainable_blocks=4,
    ),
    foundation=dict(
        _delete_=True,
        type='densevlm_mm.VLMFoundationModel',
        vlm=dict(arch=_base_.teacher_arch, checkpoint=f'{weights}/pretrain_teacher/final.pth'),
    ),
    eval_vocabulary=dict(_delete_=True, **_base_.miniworld_vocabulary),
    eval_templates=_base_.miniworld_templates,
)
crop = dict(type='densevlm_mm.CropRegions', size=64)
grid = dict(type='densevlm_mm.SampleGridRegions', min_split=1, max_split=6, max_regions=4)
train_dataloader = dict(dataset=dict(pipeline=[*_base_.load_image, grid, crop, _base_.pack]))
default_hooks = dict(checkpoint=dict(interval=200), logger=dict(interval=20))
