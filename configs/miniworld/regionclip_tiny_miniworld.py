# The twin of configs/regionclip/regionclip_vitb16_coco.py. The student before training labels boxes with class names:
#   D=data/miniworld/seed0 A=data/miniworld/seed0/annotations
#   python tools/dataset_converters/make_pseudo_labels.py $A/instances_train2017.json $A/pseudo_train2017.json \
#       --random-boxes 4 --nouns $A/panoptic_train2017.json --template 'a photo of a {}.' \
#       --image-folder $D/train2017 --vlm configs/miniworld/regionclip_tiny_miniworld.py
_base_ = [
    '../_base_/models/regionclip_vitb16.py',
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
    nouns=f'{_base_.data_root}/annotations/pseudo_train2017.json',
    templates=_base_.miniworld_templates,
    # of 18 nouns
    loss=dict(num_sampled=12),
    eval_vocabulary=dict(_delete_=True, **_base_.miniworld_vocabulary),
    eval_templates=_base_.miniworld_templates,
)
boxes = dict(type='densevlm_mm.LoadLabeledBoxes', max_regions=20)
train_dataloader = dict(
    dataset=dict(
        type='densevlm_mm.BoxDataset',
        ann_file='annotations/pseudo_train2017.json',
        pipeline=[*_base_.load_image, boxes, _base_.pack],
    )
)
default_hooks = dict(checkpoint=dict(interval=200), logger=dict(interval=20))
# the tables show what training does by itself: no blending with the original
custom_hooks = [dict(type='densevlm_mm.WeightEnsembleHook', alpha=1.0)]
