# CLIPSelf ViT-L/14: 8 GPUs x 2 images of 896 px, crops of 336 px, blend of 0.95.
_base_ = './clipself_vitb16_coco.py'

resize = [dict(type='densevlm_mm.LoadImage'), dict(type='densevlm_mm.ResizeLongestPad', size=896)]
model = dict(
    student=dict(
        arch='EVA02-CLIP-L-14-336', checkpoint='checkpoints/EVA02_CLIP_L_336_psz14_s6B.pt', trainable_blocks=24
    )
)
train_dataloader = dict(
    dataset=dict(
        pipeline=[
            *resize,
            dict(type='densevlm_mm.SampleGridRegions', min_split=1, max_split=6, max_regions=20),
            dict(type='densevlm_mm.CropRegions', size=336),
            dict(type='densevlm_mm.PackRegions'),
        ]
    )
)
val_dataloader = dict(
    dataset=dict(
        pipeline=[
            *resize,
            dict(type='densevlm_mm.LoadPanopticRegions', patch_size=14),
            dict(type='densevlm_mm.PackRegions'),
        ]
    )
)
test_dataloader = val_dataloader
custom_hooks = [dict(type='densevlm_mm.WeightEnsembleHook', alpha=0.95)]
