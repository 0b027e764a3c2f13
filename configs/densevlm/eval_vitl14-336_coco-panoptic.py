# Zero-shot region classification of any ViT-L/14-336 checkpoint (such as the teacher) on COCO panoptic val2017.
_base_ = './eval_vitb16_coco-panoptic.py'

model = dict(vlm=dict(arch='EVA02-CLIP-L-14-336'))
load_regions = dict(_base_.load_regions, patch_size=14)
test_dataloader = dict(dataset=dict(pipeline=[*_base_.load_image, load_regions, _base_.pack]))
