# The twin of configs/fvit/fvit_vitb16_ov-coco_original.py: same code, tiny model, generated data.
#   bash tools/demo.sh --detection
_base_ = [
    '../fvit/_base_/fvit_vitb16.py',
    '../_base_/models/tiny_vlms.py',
    '../_base_/datasets/ov_miniworld.py',
    '../_base_/schedules/ov_miniworld.py',
]
weights = '{{$MINIWORLD_WEIGHTS:work_dirs/miniworld/seed0}}'
width = 48
model = dict(
    vocabulary=_base_.vocabulary,
    templates=_base_.miniworld_templates,
    # the tiny CLIP does not know the word
    background_words=_base_.miniworld_vocabulary['stuff'],
    data_preprocessor=dict(
        mean=[122.771, 116.746, 104.094], std=[68.501, 66.632, 70.323], pad_size_divisor=96, pad_mask=False
    ),
    backbone=dict(
        _delete_=True,
        type='densevlm_mm.DenseVLMBackbone',
        arch=_base_.student_arch,
        checkpoint=f'{weights}/pretrain_student/final.pth',
        out_indices=(0, 1, 2, 3),
        strides=None,
        with_dense=True,
    ),
    neck=[
        dict(type='densevlm_mm.TokenPyramid', in_channels=96, norm_cfg=_base_.norm_cfg),
        dict(type='FPN', in_channels=[96] * 4, out_channels=width, num_outs=5, norm_cfg=_base_.norm_cfg),
    ],
    rpn_head=dict(
        in_channels=width, feat_channels=width, num_convs=1, anchor_generator=dict(strides=[2, 4, 8, 16, 32])
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=width, featmap_strides=[2, 4, 8, 16]),
        bbox_head=dict(
            num_shared_convs=2,
            num_shared_fcs=1,
            in_channels=width,
            conv_out_channels=width,
            fc_out_channels=64,
            cls_predictor_cfg=dict(temperature=30.0, project=True, embed_dim=64),
            loss_cls=dict(background_weight=0.6),
        ),
        mask_roi_extractor=None,
        mask_head=None,
        # the tiny CLIP's own temperature; beta and objectness were chosen on another world (docs/miniworld.md)
        score_fusion=dict(alpha=0.1, beta=0.9, temperature=15.0, objectness_power=2.0),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=300, max_per_img=200),
        rcnn=dict(assigner=dict(match_low_quality=False), sampler=dict(num=64)),
    ),
    test_cfg=dict(
        rpn=dict(nms_pre=300, max_per_img=200),
        rcnn=dict(score_thr=0.01, nms=dict(iou_threshold=0.4), max_per_img=100),
    ),
)
