# EVA02-CLIP-B/16, all 12 image blocks of which learn from its own frozen original.
model = dict(
    type='densevlm_mm.CLIPSelf',
    student=dict(arch='EVA02-CLIP-B-16', checkpoint='checkpoints/EVA02_CLIP_B_psz16_s8B.pt', trainable_blocks=12),
    loss=dict(type='densevlm_mm.CosineLoss'),
    eval_vocabulary='coco_panoptic',
)
custom_hooks = [dict(type='densevlm_mm.WeightEnsembleHook', alpha=0.7)]
