# Image-text retrieval of any ViT-L/14-336 checkpoint on the captions of COCO val2017.
_base_ = './eval_vitb16_coco-captions.py'

model = dict(vlm=dict(arch='EVA02-CLIP-L-14-336'))
test_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type='densevlm_mm.LoadImage'),
            dict(type='densevlm_mm.ResizeShortestCrop', size=336),
            dict(type='densevlm_mm.PackCaptions'),
        ]
    )
)
