# Image-text retrieval of a student of the mini world: the twin of the COCO evaluation.
_base_ = ['../_base_/models/tiny_vlms.py', '../_base_/datasets/coco_captions.py', '../_base_/default_runtime.py']
model = dict(type='densevlm_mm.ImageTextEncoder', vlm=dict(arch=_base_.student_arch))
test_dataloader = dict(
    num_workers=0,
    dataset=dict(
        data_root='{{$MINIWORLD_DATA:data/miniworld/seed0}}',
        pipeline=[
            dict(type='densevlm_mm.LoadImage'),
            dict(type='densevlm_mm.ResizeShortestCrop', size=64),
            dict(type='densevlm_mm.PackCaptions'),
        ],
    ),
)
