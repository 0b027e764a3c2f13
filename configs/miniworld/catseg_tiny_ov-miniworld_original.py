# The twin of configs/catseg/catseg_vitb16_coco-stuff_original.py: same code, tiny model, generated data.
#   bash tools/demo.sh --segmentation
_base_ = [
    '../_base_/models/tiny_vlms.py',
    '../_base_/datasets/semantic_miniworld.py',
    '../_base_/schedules/semantic_miniworld.py',
    '../_base_/default_runtime.py',
]
weights = '{{$MINIWORLD_WEIGHTS:work_dirs/miniworld/seed0}}'
size = 64  # that of the tiny CLIP: 8 x 8 tokens
model = dict(
    type='densevlm_mm.CATSeg',
    vlm=dict(arch=_base_.student_arch, checkpoint=f'{weights}/pretrain_student/final.pth'),
    vocabulary=_base_.seen,
    templates=_base_.miniworld_templates,
    aggregator=dict(
        guidance_dims=(32, 16),
        hidden_dim=32,
        num_layers=1,
        window=4,
        pad_len=0,
        appearance_dim=32,
        text_dim=32,
        decoder_dims=(32, 16),
        guidance_proj_dims=(16, 8),
    ),
    guidance_blocks=(1, 2),
    finetune_visual='none',
    finetune_text='none',
    clip_size=size,
    squash_size=size,
    window=None,
    ignored='skip',
)
resize = dict(type='mmcv.Resize', scale=(size, size), keep_ratio=False)
train_dataloader = dict(
    batch_size=8,
    num_workers=0,  # images this small load faster than a worker process can hand them over
    sampler=dict(type='InfiniteSampler'),
    dataset=dict(
        type='densevlm_mm.OVSegDataset',
        vocabulary=_base_.seen,
        data_root=_base_.data_root,
        data_prefix=dict(img_path='train2017', seg_map_path='annotations/semantic_train2017_seen'),
        pipeline=[_base_.load, _base_.load_labels, resize, dict(type='mmcv.RandomFlip', prob=0.5), _base_.pack],
    ),
)
default_hooks = dict(checkpoint=dict(interval=_base_.max_iters), logger=dict(interval=20))
