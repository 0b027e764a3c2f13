# Test only: what a detector trained on OV-LVIS finds of COCO's 80 classes.
#   python tools/test.py configs/fvit/fvit_vitl14_transfer2coco.py CHECKPOINT    # one of fvit_vitl14_ov-lvis_*.py
_base_ = './fvit_vitl14_ov-lvis_original.py'

model = dict(
    vocabulary='coco_detection',
    data_preprocessor=dict(pad_mask=False),
    roi_head=dict(
        bbox_head=dict(cls_predictor_cfg=dict(learn_temperature=False)),  # 50, not what the checkpoint has learnt
        mask_roi_extractor=None,
        mask_head=None,
        score_fusion=dict(alpha=0.2, beta=0.2, temperature=120.0),
    ),
)
train_dataloader = train_cfg = optim_wrapper = param_scheduler = None
val_dataloader = val_cfg = val_evaluator = None
test_dataloader = dict(
    dataset=dict(
        type='densevlm_mm.OVCocoDataset',
        vocabulary='coco_detection',
        data_root='data/coco',
        ann_file='annotations/instances_val2017.json',
        data_prefix=dict(img='val2017'),
    )
)
test_evaluator = dict(
    _delete_=True, type='CocoMetric', ann_file='data/coco/annotations/instances_val2017.json', metric='bbox'
)
