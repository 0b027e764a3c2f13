# CAT-Seg on EVA02-CLIP-B/16: the version of CVPR 2024, tuned as DeCLIP tunes EVA-CLIP. What is not said here is in
# densevlm_mm.CATSeg and densevlm_mm.CATSegAggregator.
model = dict(
    type='densevlm_mm.CATSeg',
    vlm=dict(arch='EVA02-CLIP-B-16', checkpoint='checkpoints/EVA02_CLIP_B_psz16_s8B.pt'),
    templates=['A photo of a {} in the scene'],
    aggregator=dict(num_layers=2, window=12, pooling=2, pad_len=256),
    guidance_blocks=(3, 7),
    finetune_visual='qv',
    finetune_text='in_proj',
    normalize_dense=True,
    clip_size=384,
    squash_size=640,
    window=384,
    stride=256,
)
