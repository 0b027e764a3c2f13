# CAT-Seg on COCO-Stuff: 4 GPUs x 1 image, EVA02-CLIP-B/16 as published.
#   bash tools/dist_train.sh configs/catseg/catseg_vitb16_coco-stuff_original.py 4
_base_ = ['./_base_/catseg_vitb16.py', './_base_/coco_stuff_384.py', './_base_/schedule_80k.py']

model = dict(vocabulary=_base_.vocabulary)
