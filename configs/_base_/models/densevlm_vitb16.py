# Student: EVA02-CLIP-B/16, all 12 image blocks train. Teacher: EVA02-CLIP-L/14-336, CLIPSelf-tuned on COCO.
model = dict(
    type='densevlm_mm.DenseVLM',
    student=dict(arch='EVA02-CLIP-B-16', checkpoint='checkpoints/EVA02_CLIP_B_psz16_s8B.pt', trainable_blocks=12),
    teacher=dict(arch='EVA02-CLIP-L-14-336', checkpoint='checkpoints/clipself_coco_6_save6_512_eva_vitl14_24layers.pt'),
    vocabulary='coco-stuff_ade20k',
    loss=dict(type='densevlm_mm.DecoupledAlignmentLoss', score_thr=0.3, logit_scale=100.0),
    eval_vocabulary='coco_panoptic',
)
custom_hooks = [
    dict(type='densevlm_mm.DecoupledLossHook'),
    dict(type='densevlm_mm.WeightEnsembleHook', alpha=0.9),
]
