"""The baselines' configs: they are the published recipes, and every one of them gives a loss and a gradient.

Towers are replaced by tiny ones, checkpoints by random weights and COCO by the mini world, which has its layout.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.runner import Runner

from densevlm_mm.datasets import read_category_names
from densevlm_mm.datasets.box_proposals import propose_boxes
from densevlm_mm.registry import MODELS

CONFIGS = Path(__file__).parents[1] / 'configs'
METHODS = {'clipself': 'CLIPSelf', 'regionclip': 'RegionCLIP', 'declip': 'DeCLIP'}
ON_COCO = sorted(path for method in METHODS for path in (CONFIGS / method).glob('*.py'))
TWINS = sorted(path for method in METHODS for path in (CONFIGS / 'miniworld').glob(f'{method}_*.py'))
ABLATIONS = (
    'coupled-group-mean', 'coupled-one-mean', 'no-threshold', 'threshold-50', 'block-diagonal', 'fewer-classes',
    'untuned-teacher', 'coupled-stuff-twice',
)  # fmt: skip


@pytest.fixture(scope='module')
def world(miniworld, tmp_path_factory) -> Path:
    """The mini world with the files of boxes that the baselines read."""
    root = tmp_path_factory.mktemp('boxes') / 'miniworld'
    shutil.copytree(miniworld, root)
    folder = root / 'annotations'
    instances = json.loads((folder / 'instances_train2017.json').read_text())
    proposals = propose_boxes(instances, random_boxes=4)
    nouns = read_category_names(str(folder / 'panoptic_train2017.json'))
    categories = [{'id': i + 1, 'name': name} for i, name in enumerate(nouns)]
    annotations = [{**a, 'category_id': a['id'] % len(nouns) + 1} for a in proposals['annotations']]
    pseudo = {**proposals, 'annotations': annotations, 'categories': categories}
    for name, content in (('proposals_train2017', proposals), ('coco_proposals', proposals)):
        (folder / f'{name}.json').write_text(json.dumps(content))
    for name in ('pseudo_train2017', 'coco_pseudo_4764'):
        (folder / f'{name}.json').write_text(json.dumps(pseudo))
    return root


def tiny(arch: str) -> dict:
    """As many blocks and as large patches, but of width 16."""
    patch, layers = {'EVA02-CLIP-B-16': (16, 12), 'EVA02-CLIP-L-14-336': (14, 24)}[arch]
    vision = {'image_size': 4 * patch, 'patch_size': patch, 'layers': layers, 'width': 16, 'head_width': 16}
    vision |= {'mlp_ratio': 2.6667, 'eva_model_name': 'tiny', 'pt_hw_seq_len': 4}
    vision |= {'rope': True, 'naiveswiglu': True, 'subln': True}
    return {'embed_dim': 16, 'vision_cfg': vision, 'text_cfg': {'width': 8, 'heads': 2, 'layers': 1}}


def shrink(cfg: Config, world: Path) -> Config:
    model, loader = cfg.model, cfg.train_dataloader
    student = model.student
    student.update(arch=tiny(student.arch) if isinstance(student.arch, str) else student.arch, checkpoint=None)
    if 'foundation' in model:
        if 'vlm' in model.foundation:
            model.foundation.vlm.checkpoint = None
        else:
            model.foundation.update(name='test_vit', checkpoint=None)
    if 'nouns' in model:
        model.nouns = str(world / 'annotations' / Path(model.nouns).name)
        model.setdefault('templates', ['a photo of a {}.'])
    loader.dataset.data_root = str(world)
    loader.update(num_workers=0, persistent_workers=False, batch_size=2)
    for transform in loader.dataset.pipeline:
        if transform.get('size', 0) > 112:  # where the method resizes
            transform.size = 112
    if model.get('multiscale'):
        model.multiscale = [min(model.multiscale[0], 96)]
    return cfg


@pytest.mark.parametrize('path', [*ON_COCO, *TWINS], ids=lambda path: path.stem)
def test_config_gives_a_loss_and_a_gradient_to_all_that_trains(path, world, monkeypatch):
    monkeypatch.setenv('MINIWORLD_DATA', str(world))
    cfg = shrink(Config.fromfile(path), world)
    model = MODELS.build(cfg.model).train()
    data = model.data_preprocessor(next(iter(Runner.build_dataloader(cfg.train_dataloader, seed=0))), True)
    losses = model(**data, mode='loss')
    assert losses['num_regions'] > 0
    total = sum(value for key, value in losses.items() if key.startswith('loss'))
    assert total.isfinite()
    total.backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
    if cfg.optim_wrapper.type == 'OptimWrapper':
        build_optim_wrapper(model, cfg.optim_wrapper)


@pytest.mark.parametrize('path', [*ON_COCO, *TWINS], ids=lambda path: path.stem)
def test_name_says_what_it_is(path):
    cfg, (method, backbone, data, *variant) = Config.fromfile(path), path.stem.split('_')
    assert cfg.model.type == f'densevlm_mm.{METHODS[method]}'
    assert data == ('miniworld' if path in TWINS else 'coco')
    transforms = [step.type.removeprefix('densevlm_mm.') for step in cfg.train_dataloader.dataset.pipeline]
    assert ('CropRegions' in transforms) == (method != 'regionclip')
    assert ('SampleProposals' in transforms) == (variant == ['proposals'])
    assert (cfg.model.get('multiscale') is not None) == (variant == ['multiscale'])
    if path in ON_COCO:
        tower = {'vitb16': 'EVA02-CLIP-B-16', 'vitl14-336': 'EVA02-CLIP-L-14-336'}[backbone]
        assert cfg.model.student.arch == tower
        assert cfg.model.student.trainable_blocks == {'vitb16': 12, 'vitl14-336': 24}[backbone]
        size = next(step.size for step in cfg.train_dataloader.dataset.pipeline if 'size' in step)
        assert cfg.val_dataloader.dataset.pipeline[1].size == cfg.test_dataloader.dataset.pipeline[1].size == size
        assert size % cfg.val_dataloader.dataset.pipeline[2].patch_size == 0
    else:
        assert cfg.model.student.trainable_blocks == cfg.model.student.arch.vision_cfg.layers


@pytest.mark.parametrize('path', ON_COCO, ids=lambda path: path.stem)
def test_every_coco_config_has_a_twin(path):
    method, backbone, _, *variant = path.stem.split('_')
    names = {twin.stem for twin in TWINS}
    tiny_name = '_'.join([method, {'vitb16': 'tiny', 'vitl14-336': 'tiny-large'}[backbone], 'miniworld', *variant])
    # RegionCLIP's two settings differ in size and batch alone, which the mini world has its own of
    assert tiny_name in names or path.stem == 'regionclip_vitb16_coco_comparison'


@pytest.mark.parametrize(
    ('name', 'size', 'gpus', 'alpha', 'regions'),
    [
        ('clipself/clipself_vitb16_coco', 1024, 8, 0.7, {'min_split': 1, 'max_split': 6, 'max_regions': 20}),
        ('clipself/clipself_vitl14-336_coco', 896, 8, 0.95, {'min_split': 1, 'max_split': 6, 'max_regions': 20}),
        ('clipself/clipself_vitb16_coco_proposals', 1024, 8, 0.7, {'max_regions': 20}),
        ('clipself/clipself_vitb16_coco_comparison', 512, 4, 0.7, {'min_split': 2, 'max_split': 6}),
        ('regionclip/regionclip_vitb16_coco', 1024, 8, 0.7, {'max_regions': 20}),
        ('regionclip/regionclip_vitb16_coco_comparison', 512, 4, 0.7, {'max_regions': 20}),
        ('declip/declip_vitb16_coco', 560, 8, None, {'min_split': 1, 'max_split': 6, 'max_regions': 20}),
    ],
)
def test_recipe_is_the_published_one(name, size, gpus, alpha, regions):
    """6 epochs of 118,287 images, AdamW with 1e-5 and 0.1, 1,000 steps of warm-up; 8 GPUs x 2 or 4 x 16 images."""
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    per_gpu = {8: 2, 4: 16}[gpus]
    assert cfg.train_dataloader.batch_size == per_gpu
    assert cfg.auto_scale_lr.base_batch_size == gpus * per_gpu
    steps = -(-118287 // gpus) // per_gpu
    assert (cfg.max_iters, cfg.train_cfg.max_iters, cfg.train_cfg.val_interval) == (6 * steps, 6 * steps, steps)
    assert cfg.default_hooks.checkpoint.interval == steps
    assert (cfg.warmup_iters, cfg.param_scheduler[1].T_max) == (1000, 6 * steps - 1000)
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.lr, optimizer.weight_decay, optimizer.betas, optimizer.eps) == (1e-5, 0.1, (0.9, 0.999), 1e-8)
    assert [hook.alpha for hook in cfg.get('custom_hooks', [])] == ([] if alpha is None else [alpha])
    pipeline = cfg.train_dataloader.dataset.pipeline
    assert pipeline[1].size == size
    assert {key: value for key, value in pipeline[2].items() if key != 'type'} == regions


def test_crops_have_the_native_size_of_the_model():
    for path in ON_COCO:
        for step in Config.fromfile(path).train_dataloader.dataset.pipeline:
            if step.type.endswith('CropRegions'):
                assert step.size == (336 if '336' in path.stem else 224)
                assert step.get('enlarge', 1.0) == (1.5 if 'proposals' in path.stem else 1.0)


@pytest.mark.parametrize('name', ABLATIONS)
@pytest.mark.parametrize('main', ['densevlm/densevlm_vitb16_coco', 'miniworld/densevlm_tiny_miniworld'])
def test_ablation_changes_one_thing(main, name):
    whole, ablated = (Config.fromfile(CONFIGS / f'{main}{suffix}.py') for suffix in ('', f'_{name}'))
    changed = {key for key in ablated if ablated[key] != whole.get(key)}
    assert changed == {'model'}
    parts = {key for key in ablated.model if ablated.model[key] != whole.model.get(key)}
    assert parts == {{'fewer-classes': 'vocabulary', 'untuned-teacher': 'teacher'}.get(name, 'loss')}
    loss = {key: value for key, value in ablated.model.loss.items() if value != whole.model.loss.get(key)}
    assert loss == {
        'coupled-group-mean': {'thing_classes': 'all'},
        'coupled-one-mean': {'thing_classes': 'all', 'mean': 'joint'},
        'coupled-stuff-twice': {'thing_classes': 'all', 'stuff_weight': 2.0},
        'no-threshold': {'score_thr': 0.0},
        'threshold-50': {'score_thr': 0.5},
        'block-diagonal': {'stuff_classes': 'stuff'},
    }.get(name, {})
