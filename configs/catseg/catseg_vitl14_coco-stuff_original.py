# CAT-Seg on COCO-Stuff: 4 GPUs x 1 image, EVA02-CLIP-L/14-336 as published. Views of 336 px are 24 x 24 tokens, too.
#   bash tools/dist_train.sh configs/catseg/catseg_vitl14_coco-stuff_original.py 4
_base_ = ['./_base_/catseg_vitb16.py', './_base_/coco_stuff_384.py', './_base_/schedule_80k.py']

model = dict(
    vlm=dict(arch='EVA02-CLIP-L-14-336', checkpoint='checkpoints/EVA02_CLIP_L_336_psz14_s6B.pt'),
    vocabulary=_base_.vocabulary,
    guidance_blocks=(7, 15),
    clip_size=336,
)
