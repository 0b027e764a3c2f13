# F-VLM on OV-LVIS with open_clip's ConvNeXt-Large, trained on LAION-2B with 320 px.
#   bash tools/dist_train.sh configs/fvit/fvlm_convnext-large_ov-lvis.py 8    # on each of 4 nodes
_base_ = './fvlm_rn50x64_ov-lvis.py'

model = dict(
    backbone=dict(
        arch='convnext_large_d_320',
        checkpoint='checkpoints/convnext_large_d_320_laion2b_s29b_b131k_ft_soup.safetensors',
    ),
    neck=dict(in_channels=[192, 384, 768, 1536]),
    roi_head=dict(bbox_head=dict(cls_predictor_cfg=dict(embed_dim=768))),
)
