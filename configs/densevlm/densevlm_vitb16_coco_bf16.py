# In bfloat16 throughout, which needs no loss scaling; weights and their updates stay fp32.
#   bash tools/dist_train.sh configs/densevlm/densevlm_vitb16_coco_bf16.py 4
_base_ = './densevlm_vitb16_coco.py'
model = dict(teacher=dict(dtype='bfloat16'))
optim_wrapper = dict(
    _delete_=True,
    type='densevlm_mm.AutocastOptimWrapper',
    dtype='bfloat16',
    optimizer=_base_.optim_wrapper.optimizer,
    constructor=_base_.optim_wrapper.constructor,
)
