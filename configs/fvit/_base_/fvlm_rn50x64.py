# F-VLM on OpenAI's CLIP ResNet-50x64: the frozen tower's stages go into an FPN, and what leaves the last one is cut by
# regions and pooled by the tower's own head. What is not said here is MMDetection's Mask R-CNN.
_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'
norm_cfg = dict(type='SyncBN', requires_grad=True)

model = dict(
    type='densevlm_mm.FViT',
    region_pooling='head',
    data_preprocessor=dict(mean=[122.771, 116.746, 104.094], std=[68.501, 66.632, 70.323]),
    backbone=dict(
        _delete_=True,
        type='densevlm_mm.DenseVLMBackbone',
        arch='RN50x64-quickgelu',
        checkpoint='checkpoints/RN50x64.pt',
        out_indices=(0, 1, 2, 3),
        strides=None,
    ),
    neck=dict(in_channels=[512, 1024, 2048, 4096], norm_cfg=norm_cfg),
    rpn_head=dict(type='densevlm_mm.NormedRPNHead', num_convs=2, norm_cfg=norm_cfg),
    roi_head=dict(
        type='densevlm_mm.FViTRoIHead',
        bbox_head=dict(
            type='ConvFCBBoxHead',
            num_shared_convs=4,
            num_shared_fcs=1,
            norm_cfg=norm_cfg,
            reg_class_agnostic=True,
            cls_predictor_cfg=dict(
                type='densevlm_mm.TextEmbeddingClassifier', temperature=100.0, project=True, embed_dim=1024
            ),
            loss_cls=dict(_delete_=True, type='densevlm_mm.VocabularyCrossEntropyLoss', background_weight=0.9),
        ),
        mask_head=dict(norm_cfg=norm_cfg, class_agnostic=True),
        score_fusion=dict(
            type='densevlm_mm.ScoreFusion',
            alpha=0.35,
            beta=0.65,
            temperature=100.0,
            renormalize=True,
            background='detector',
        ),
    ),
    test_cfg=dict(rcnn=dict(max_per_img=300)),
)
