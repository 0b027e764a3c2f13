# ViT-L/14 student, taught by a CLIPSelf-tuned model of its own size. 512 px give 36 x 36 tokens.
_base_ = './densevlm_vitb16_coco.py'

model = dict(
    student=dict(
        arch='EVA02-CLIP-L-14-336', checkpoint='checkpoints/EVA02_CLIP_L_336_psz14_s6B.pt', trainable_blocks=24
    )
)
# tokens of 14 px: the masks are made for the student's grid
val_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type='densevlm_mm.LoadImage'),
            dict(type='densevlm_mm.ResizeLongestPad', size=512),
            dict(type='densevlm_mm.LoadPanopticRegions', patch_size=14),
            dict(type='densevlm_mm.PackRegions'),
        ]
    )
)
test_dataloader = val_dataloader
