# Training-free segmentation of PASCAL VOC 2012 without its background, with any ViT-B/16 of EVA-02-CLIP.
#   python tools/test.py configs/training_free/training-free_vitb16_voc20.py CHECKPOINT
_base_ = './_base_/training-free_vitb16.py'

vocabulary = dict(
    name='voc20',
    synonyms=dict(
        boat=['ship'],
        diningtable=['table'],
        person=[
            'person',
            *(f'person in {clothes}' for clothes in ('shirt', 'jeans', 'dress', 'sweater', 'skirt', 'jacket')),
        ],
        tvmonitor=['television monitor', 'tv monitor', 'monitor', 'television', 'screen'],
    ),
)
model = dict(vocabulary=vocabulary)
test_dataloader = dict(
    dataset=dict(
        type='densevlm_mm.VOC20SegDataset',
        vocabulary=vocabulary,
        data_root='data/VOCdevkit/VOC2012',
        ann_file='ImageSets/Segmentation/val.txt',
        data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClass'),
    ),
)
