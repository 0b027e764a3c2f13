# What the stock configs exchange: their backbone, the mean and standard deviation of its images, its channels.
tower = dict(
    _delete_=True,
    type='densevlm_mm.DenseVLMBackbone',
    arch='EVA02-CLIP-B-16',
    checkpoint='checkpoints/densevlm_coco_6_save6_512_eva_vib16_12layers.pt',
    out_indices=(3, 5, 7, 11),
)
pixels = dict(mean=[122.771, 116.746, 104.094], std=[68.501, 66.632, 70.323], bgr_to_rgb=True)
width = 768
