# DenseVLM's tower, as its authors publish it, in the place of the original.
_base_ = './catseg_vitb16_coco-stuff_original.py'
model = dict(vlm=dict(checkpoint='checkpoints/densevlm_coco_6_save6_512_eva_vib16_12layers.pt'))
