# The twin of configs/densevlm/densevlm_vitb16_coco.py: same code, tiny models, generated data.
#   bash tools/demo.sh
_base_ = [
    '../_base_/models/densevlm_vitb16.py',
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
    teacher=dict(_delete_=True, arch=_base_.teacher_arch, checkpoint=f'{weights}/pretrain_teacher/final.pth'),
    vocabulary=dict(_delete_=True, **_base_.miniworld_vocabulary),
    templates=_base_.miniworld_templates,
    # the scale that both tiny models have learnt; 100 is that of real CLIPs
    loss=dict(logit_scale=15.0),
    eval_vocabulary=dict(_delete_=True, **_base_.miniworld_vocabulary),
    eval_templates=_base_.miniworld_templates,
)
default_hooks = dict(checkpoint=dict(interval=200), logger=dict(interval=20))
# the tables show what training does by itself: no blending with the original
custom_hooks = [dict(type='densevlm_mm.DecoupledLossHook'), dict(type='densevlm_mm.WeightEnsembleHook', alpha=1.0)]
