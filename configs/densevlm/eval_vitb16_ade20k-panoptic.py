# Zero-shot region classification of any ViT-B/16 checkpoint on ADE20K panoptic validation, 150 classes.
#   python tools/test.py configs/densevlm/eval_vitb16_ade20k-panoptic.py CHECKPOINT
_base_ = './eval_vitb16_coco-panoptic.py'

model = dict(eval_vocabulary='ade20k_panoptic')
test_dataloader = dict(
    dataset=dict(
        data_root='data/ADEChallengeData2016',
        ann_file='ade20k_panoptic_val.json',
        data_prefix=dict(img_path='images/validation', seg_map_path='ade20k_panoptic_val'),
    )
)
