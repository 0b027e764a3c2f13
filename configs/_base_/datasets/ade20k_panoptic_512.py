# Region classification on ADE20K panoptic validation, made by tools/dataset_converters/ade20k_panoptic.py.
_base_ = './coco_panoptic_512.py'

val_dataloader = val_evaluator = val_cfg = None
test_dataloader = dict(
    dataset=dict(
        data_root='data/ADEChallengeData2016',
        ann_file='ade20k_panoptic_val.json',
        data_prefix=dict(img_path='images/validation', seg_map_path='ade20k_panoptic_val'),
    )
)
