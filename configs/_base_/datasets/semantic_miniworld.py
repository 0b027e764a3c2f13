# The mini world for segmentation: training knows labels of twelve classes, and six novel ones are ignored there. Label
# maps are made of the panoptic ones by tools/demo_segmentation.py.
data_root = '{{$MINIWORLD_DATA:data/miniworld/seed0}}'
novel = ['tree', 'star', 'boat', 'moss', 'sky', 'stone']
seen = dict(
    things=['car', 'house', 'person', 'ball', 'fish', 'cup', 'flower'],
    stuff=['grass', 'wood', 'earth', 'water', 'sand'],
)
vocabulary = dict(
    things=['car', 'house', 'tree', 'person', 'ball', 'star', 'fish', 'cup', 'boat', 'flower'],
    stuff=['grass', 'moss', 'wood', 'earth', 'sky', 'water', 'sand', 'stone'],
    base=seen['things'] + seen['stuff'],
    novel=novel,
)
load = dict(type='mmcv.LoadImageFromFile')
load_labels = dict(type='densevlm_mm.LoadLabelMap')
pack = dict(type='mmseg.PackSegInputs')

test_dataloader = dict(
    batch_size=20,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='densevlm_mm.OVSegDataset',
        vocabulary=vocabulary,
        data_root=data_root,
        data_prefix=dict(img_path='val2017', seg_map_path='annotations/semantic_val2017'),
        test_mode=True,
        pipeline=[load, load_labels, pack],
    ),
)
test_evaluator = dict(type='densevlm_mm.OVIoUMetric')
test_cfg = dict(type='TestLoop')
custom_hooks = [dict(type='densevlm_mm.VocabularyCheckHook')]
