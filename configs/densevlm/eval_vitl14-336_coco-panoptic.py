# Zero-shot region classification of any ViT-L/14-336 checkpoint (such as the teacher) on COCO panoptic val2017.
_base_ = './eval_vitb16_coco-panoptic.py'

model = dict(vlm=dict(arch='EVA02-CLIP-L-14-336'))
test_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type='densevlm_mm.LoadImage'),
            dict(type='densevlm_mm.ResizeLongestPad', size=512),
            dict(type='densevlm_mm.LoadPanopticRegions', patch_size=14),
            dict(type='densevlm_mm.PackRegions'),
        ]
    )
)
