# F-ViT on EVA02-CLIP-B/16: a frozen tower, resamplers and FPN on its tokens, RPN, and heads of which that for boxes
# classifies by text. What is not said here is MMDetection's Mask R-CNN; ImageNet's mean and std among it, as in the
# reference, though the tower was trained with CLIP's (docs/detection.md).
_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'
norm_cfg = dict(type='SyncBN', requires_grad=True)

model = dict(
    type='densevlm_mm.FViT',
    backbone=dict(
        _delete_=True,
        type='densevlm_mm.DenseVLMBackbone',
        arch='EVA02-CLIP-B-16',
        checkpoint='checkpoints/EVA02_CLIP_B_psz16_s8B.pt',
        out_indices=(3, 5, 7, 11),
        strides=None,
        with_dense=True,
    ),
    neck=[
        dict(type='densevlm_mm.TokenPyramid', in_channels=768, norm_cfg=norm_cfg),
        dict(type='FPN', in_channels=[768] * 4, out_channels=256, num_outs=5, norm_cfg=norm_cfg),
    ],
    rpn_head=dict(num_convs=2),
    roi_head=dict(
        type='densevlm_mm.FViTRoIHead',
        bbox_head=dict(
            type='ConvFCBBoxHead',
            num_shared_convs=4,
            num_shared_fcs=2,
            num_cls_fcs=1,
            num_reg_fcs=1,
            fc_out_channels=512,  # that of the image-text space
            norm_cfg=norm_cfg,
            reg_class_agnostic=True,
            cls_predictor_cfg=dict(type='densevlm_mm.TextEmbeddingClassifier', temperature=50.0),
            loss_cls=dict(_delete_=True, type='densevlm_mm.VocabularyCrossEntropyLoss'),
        ),
        mask_head=dict(norm_cfg=norm_cfg, class_agnostic=True),
        score_fusion=dict(type='densevlm_mm.ScoreFusion'),
    ),
    test_cfg=dict(rpn=dict(nms_pre=2000)),
)
