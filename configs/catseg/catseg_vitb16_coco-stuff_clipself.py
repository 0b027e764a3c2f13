# CLIPSelf's tower, tuned on patches of COCO images.
_base_ = './catseg_vitb16_coco-stuff_original.py'
model = dict(vlm=dict(checkpoint='checkpoints/eva_vitb16_coco_clipself_patches.pt'))
