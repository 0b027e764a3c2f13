# Test only: what a detector trained on OV-LVIS finds of the 365 classes of Objects365 v1.
#   python tools/test.py configs/fvit/fvit_vitl14_transfer2objects365.py CHECKPOINT    # one of fvit_vitl14_ov-lvis_*.py
_base_ = './fvit_vitl14_ov-lvis_original.py'

model = dict(
    vocabulary='objects365_v1',
    data_preprocessor=dict(pad_mask=False),
    roi_head=dict(
        bbox_head=dict(cls_predictor_cfg=dict(learn_temperature=False)),  # 50, not what the checkpoint has learnt
        mask_roi_extractor=None,
        mask_head=None,
        score_fusion=dict(alpha=0.3, beta=0.3, temperature=120.0),
    ),
)
train_dataloader = train_cfg = optim_wrapper = param_scheduler = None
val_dataloader = val_cfg = val_evaluator = None
test_dataloader = dict(
    dataset=dict(
        type='densevlm_mm.OVObjects365Dataset',
        vocabulary='objects365_v1',
        data_root='data/objects365v1',
        ann_file='annotations/objects365_val.json',
        data_prefix=dict(img='val'),
    )
)
test_evaluator = dict(
    _delete_=True,
    type='CocoMetric',
    ann_file='data/objects365v1/annotations/objects365_val.json',
    metric='bbox',
    sort_categories=True,
)
