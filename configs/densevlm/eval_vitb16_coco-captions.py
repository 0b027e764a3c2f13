# Image-text retrieval of any ViT-B/16 checkpoint on the captions of COCO val2017.
#   python tools/test.py configs/densevlm/eval_vitb16_coco-captions.py CHECKPOINT
_base_ = ['../_base_/datasets/coco_captions.py', '../_base_/default_runtime.py']
model = dict(type='densevlm_mm.ImageTextEncoder', vlm=dict(arch='EVA02-CLIP-B-16'))
