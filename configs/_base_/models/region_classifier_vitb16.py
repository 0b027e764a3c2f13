model = dict(
    type='densevlm_mm.RegionClassifier',
    data_preprocessor=dict(
        type='ImgDataPreprocessor',
        mean=[122.7709383, 116.7460125, 104.09373615],
        std=[68.5005327, 66.6321579, 70.32316305],
    ),
    vlm=dict(arch='EVA02-CLIP-B-16'),
    eval_vocabulary='coco_panoptic',
)
