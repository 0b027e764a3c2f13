# The twin of configs/densevlm/densevlm_vitb16_coco_as-released.py: a quarter of the images per epoch, one thing class
# less in the split than in the vocabulary.
_base_ = './densevlm_tiny_miniworld.py'
train_dataloader = dict(batch_size=8, sampler=dict(ratio=0.25))
model = dict(loss=dict(num_things=9))
