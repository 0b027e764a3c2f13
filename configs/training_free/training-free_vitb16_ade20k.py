# Training-free segmentation of ADE20K, 150 classes, with any ViT-B/16 of EVA-02-CLIP.
#   python tools/test.py configs/training_free/training-free_vitb16_ade20k.py CHECKPOINT
_base_ = './_base_/training-free_vitb16.py'

model = dict(vocabulary='ade20k')
test_dataloader = dict(
    dataset=dict(
        type='densevlm_mm.ADE150SegDataset',
        data_root='data/ADEChallengeData2016',
        data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
    ),
)
