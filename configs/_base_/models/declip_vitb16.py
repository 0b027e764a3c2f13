# EVA02-CLIP-B/16 with attention of queries and keys to themselves; its own original and DINOv2-B/14 teach it.
model = dict(
    type='densevlm_mm.DeCLIP',
    student=dict(
        arch='EVA02-CLIP-B-16',
        checkpoint='checkpoints/EVA02_CLIP_B_psz16_s8B.pt',
        dense_mode='csa',
        trainable_blocks=12,
    ),
    foundation=dict(
        type='densevlm_mm.TimmFoundationModel',
        name='vit_base_patch14_dinov2',
        checkpoint='checkpoints/dinov2_vitb14_pretrain.pth',
    ),
    content_loss=dict(type='densevlm_mm.CosineLoss'),
    context_loss=dict(type='densevlm_mm.CorrelationLoss', loss_weight=0.25),
    eval_vocabulary='coco_panoptic',
)
