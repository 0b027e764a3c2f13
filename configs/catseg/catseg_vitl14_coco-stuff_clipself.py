# CLIPSelf's tower, tuned on patches of COCO images.
_base_ = './catseg_vitl14_coco-stuff_original.py'
model = dict(vlm=dict(checkpoint='checkpoints/eva_vitl14_coco_clipself_patches.pt'))
