# CLIPSelf ViT-L/14: 8 GPUs x 2 images of 896 px, crops of 336 px, blend of 0.95.
_base_ = './clipself_vitb16_coco.py'
resize = [dict(type='densevlm_mm.LoadImage'), dict(type='densevlm_mm.ResizeLongestPad', size=896)]
crop = dict(type='densevlm_mm.CropRegions', size=336)
load_regions = dict(type='densevlm_mm.LoadPanopticRegions', patch_size=14)

model = dict(
    student=dict(
        arch='EVA02-CLIP-L-14-336', checkpoint='checkpoints/EVA02_CLIP_L_336_psz14_s6B.pt', trainable_blocks=24
    )
)
train_dataloader = dict(dataset=dict(pipeline=[*resize, _base_.grid, crop, _base_.pack]))
val_dataloader = dict(dataset=dict(pipeline=[*resize, load_regions, _base_.pack]))
test_dataloader = val_dataloader
custom_hooks = [dict(type='densevlm_mm.WeightEnsembleHook', alpha=0.95)]
