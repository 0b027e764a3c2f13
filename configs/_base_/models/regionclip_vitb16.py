# EVA02-CLIP-B/16, all 12 image blocks of which learn to tell the nouns of a pseudo-label file.
model = dict(
    type='densevlm_mm.RegionCLIP',
    student=dict(arch='EVA02-CLIP-B-16', checkpoint='checkpoints/EVA02_CLIP_B_psz16_s8B.pt', trainable_blocks=12),
    nouns='data/coco/annotations/coco_pseudo_4764.json',
    loss=dict(type='densevlm_mm.FederatedBCELoss', num_sampled=100),
    eval_vocabulary='coco_panoptic',
)
custom_hooks = [dict(type='densevlm_mm.WeightEnsembleHook', alpha=0.7)]
