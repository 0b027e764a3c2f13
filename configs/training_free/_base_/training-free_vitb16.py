# A CLIP as it is, on one data set; the settings are those of protocols/methods/densevlm.yaml.
_base_ = '../../_base_/default_runtime.py'
default_scope = 'mmseg'

model = dict(
    type='densevlm_mm.TrainingFreeSegmentor',
    vlm=dict(arch='EVA02-CLIP-B-16'),  # weights come with the command
    templates='openai',
    window=336,
    stride=112,
    logit_scale=40.0,
)
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(2048, 448), keep_ratio=True),
    dict(type='densevlm_mm.LoadLabelMap'),
    dict(type='PackSegInputs'),
]
test_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(test_mode=True, pipeline=test_pipeline),
)
test_evaluator = dict(type='densevlm_mm.OVIoUMetric', per_class=True)
test_cfg = dict(type='TestLoop')
custom_hooks = [dict(type='densevlm_mm.VocabularyCheckHook')]
visualizer = dict(type='SegLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')])  # for MMSegInferencer
