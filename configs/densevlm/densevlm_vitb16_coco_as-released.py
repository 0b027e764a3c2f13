# What the released training code effectively ran. It never averaged gradients between its 4 processes and saved the
# first one's weights, so: one process, batch 16, another random quarter of COCO each epoch, 11,088 steps. Its class
# list counts 204 things, of which its split takes 203.
#   python tools/train.py configs/densevlm/densevlm_vitb16_coco_as-released.py
_base_ = './densevlm_vitb16_coco.py'

train_dataloader = dict(batch_size=16, sampler=dict(ratio=0.25))
model = dict(
    # the list holds three names twice, and so did the released run
    vocabulary=dict(
        _delete_=True,
        file='data/densevlm/openseg_classes.py::COCO_STUFF_ADE20k_Thing204_STUFF112',
        allow_duplicates=True,
    ),
    loss=dict(num_things=203),
)
auto_scale_lr = dict(base_batch_size=16)
