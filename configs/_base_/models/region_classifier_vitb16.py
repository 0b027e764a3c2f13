model = dict(
    type='densevlm_mm.RegionClassifier',
    vlm=dict(arch='EVA02-CLIP-B-16'),
    eval_vocabulary='coco_panoptic',
)
