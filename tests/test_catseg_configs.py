"""CAT-Seg's configs: they are the published recipe, train what they should and nothing else, and predict.

Towers and heads are replaced by tiny ones and the images by a few generated ones, in the layout of the real data.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from mmengine.config import Config
from PIL import Image
from torch import nn

pytest.importorskip('mmseg')

from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import METRICS, PARAM_SCHEDULERS, DefaultScope
from mmengine.runner import Runner

from densevlm_mm.registry import HOOKS, MODELS
from densevlm_mm.vlm.architectures import build_vision_tower, resolve_arch

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / 'configs' / 'catseg'
ALL = sorted(path.stem for path in CONFIGS.glob('*.py'))
TOWERS = ('original', 'clipself', 'densevlm')
# those that differ in more than the tower's checkpoint
RECIPES = [name for name in ALL if name.endswith('_original')]
ARCHS = {
    'vitb16': 'EVA02-CLIP-B-16',
    'vitl14': 'EVA02-CLIP-L-14-336',
    'openai-vitb16': 'ViT-B-16-quickgelu',
    'openai-vitl14': 'ViT-L-14-336-quickgelu',
}
NUM_CLASSES = 171
IMAGE_SIZE = (40, 52)
every_config = pytest.mark.parametrize('name', ALL)
every_recipe = pytest.mark.parametrize('name', RECIPES)


@cache
def _load(name: str) -> Config:
    return Config.fromfile(CONFIGS / f'{name}.py')


def load(name: str) -> Config:
    return copy.deepcopy(_load(name))


def loaders(cfg: Config) -> list[dict]:
    return [cfg[key] for key in ('train_dataloader', 'val_dataloader', 'test_dataloader')]


def step(loader: dict, kind: str) -> dict:
    """The transform of this type in a loader's pipeline."""
    (found,) = (transform for transform in loader.dataset.pipeline if transform.type == kind)
    return found


@cache
def real_tower(arch: str) -> nn.Module:
    with torch.device('meta'):
        return build_vision_tower(resolve_arch(arch))


# what a config says


@every_config
def test_name_says_what_it_is(name):
    cfg, (method, backbone, data, tower) = load(name), name.split('_')
    assert (method, data, cfg.model.type) == ('catseg', 'coco-stuff', 'densevlm_mm.CATSeg')
    assert cfg.model.vlm.arch == ARCHS[backbone]
    assert tower in TOWERS
    assert tower in cfg.model.vlm.checkpoint or tower == 'original'
    assert {loader.dataset.vocabulary for loader in loaders(cfg)} == {cfg.model.vocabulary} == {'coco_stuff'}


@pytest.mark.parametrize('backbone', ['vitb16', 'vitl14'])
def test_families_differ_in_the_checkpoint_of_the_tower_alone(backbone):
    configs = [load(f'catseg_{backbone}_coco-stuff_{tower}') for tower in TOWERS]
    assert len({cfg.model.vlm.pop('checkpoint') for cfg in configs}) == len(TOWERS)
    assert configs[0].to_dict() == configs[1].to_dict() == configs[2].to_dict()


@every_config
def test_towers_change_the_model_alone(name):
    cfg, base = load(name), load('catseg_vitb16_coco-stuff_original')
    assert {key for key in cfg if cfg[key] != base[key]} <= {'model'}
    assert cfg.model.aggregator == base.model.aggregator


@every_recipe
def test_sizes_are_those_of_the_tower(name):
    """Views are 24 x 24 tokens, which attention windows divide; guidance comes from a third and two thirds."""
    model = load(name).model
    tower = real_tower(model.vlm.arch)
    grid, depth = model.clip_size // tower.patch_size[0], len(tower.blocks)
    assert grid == 24 and grid * tower.patch_size[0] == model.clip_size
    assert grid % model.aggregator.window == 0 == grid % model.aggregator.pooling
    assert model.guidance_blocks == (depth // 3 - 1, 2 * depth // 3 - 1)


@every_recipe
def test_recipe_is_the_published_one(name):
    cfg, is_openai = load(name), 'openai' in name
    model, train, val = cfg.model, cfg.train_dataloader, cfg.val_dataloader
    assert (model.squash_size, model.window, model.stride) == (640, 384, int(384 * 0.667))
    assert model.templates == ['A photo of a {} in the scene']
    assert model.aggregator == dict(num_layers=2, window=12, pooling=2, pad_len=256)
    assert (model.finetune_visual, model.finetune_text) == ('qv', 'qv' if is_openai else 'in_proj')
    assert model.normalize_dense != is_openai and model.get('class_token_residual', False) == is_openai
    assert step(train, 'ResizeShortestEdge').scale == 384 and step(val, 'Resize').scale == (2560, 640)
    assert step(train, 'RandomCrop').crop_size == step(train, 'Pad').size == (384, 384)
    assert step(train, 'Pad').pad_val == dict(img=(128, 128, 128), seg=255)
    assert cfg.optim_wrapper.type == 'OptimWrapper'
    assert cfg.optim_wrapper.optimizer == dict(type='AdamW', lr=2e-4, betas=(0.9, 0.999), weight_decay=1e-4)
    assert cfg.optim_wrapper.clip_grad == dict(max_norm=0.01, norm_type=2)
    assert (cfg.train_cfg.max_iters, cfg.train_cfg.val_interval) == (80000, 5000)
    assert train.batch_size * 4 == cfg.auto_scale_lr.base_batch_size == 4


def test_learning_rate_falls_to_zero_by_a_cosine():
    cfg = load(RECIPES[0])
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2e-4)
    (cosine,) = cfg.param_scheduler
    assert (cosine.T_max, cosine.end, cosine.by_epoch) == (cfg.max_iters, cfg.max_iters, False)
    shorter = {**cosine, 'T_max': 80, 'end': 80}
    scheduler = PARAM_SCHEDULERS.build(shorter, default_args={'optimizer': optimizer})
    rates = []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]['lr'])
        for _ in range(20):
            optimizer.step()
            scheduler.step()
    np.testing.assert_allclose(rates, 1e-4 * (1 + np.cos(np.pi * np.arange(4) / 4)), rtol=1e-4)
    assert optimizer.param_groups[0]['lr'] < 1e-3 * 2e-4


@every_config
def test_paths_are_documented(name):
    text = (ROOT / 'docs' / 'segmentation.md').read_text('utf-8')
    cfg = load(name)
    datasets = [loader.dataset for loader in loaders(cfg)]
    folders = [f'{dataset.data_root}/{path}' for dataset in datasets for path in dataset.data_prefix.values()]
    assert [path for path in [cfg.model.vlm.checkpoint, *folders] if path not in text] == []


@every_config
def test_results_have_a_row(name):
    assert re.search(rf'^\| `{name}` \|', (ROOT / 'docs' / 'segmentation.md').read_text('utf-8'), re.MULTILINE)


def test_metafile_lists_every_config():
    models = yaml.safe_load((CONFIGS / 'metafile.yml').read_text())['Models']
    found = [(model['Config'], model['Name'], model['Metadata']['Batch Size']) for model in models]
    assert sorted(found) == [(f'configs/catseg/{name}.py', name, 4) for name in ALL]


# what a config does


def tiny_arch(arch: str) -> dict[str, Any]:
    """As many blocks and as large patches, but of width 16."""
    tower = real_tower(arch)
    patch = tower.patch_size[0]
    vision = {'image_size': 4 * patch, 'patch_size': patch, 'layers': len(tower.blocks), 'width': 16, 'head_width': 16}
    text = {'context_length': 77, 'width': 8, 'heads': 2, 'layers': 2}
    if not arch.startswith('EVA02'):
        return {'embed_dim': 8, 'vision_cfg': vision, 'text_cfg': text, 'quick_gelu': True}
    vision |= {'mlp_ratio': 2.6667, 'eva_model_name': 'tiny', 'pt_hw_seq_len': 4}
    return {
        'embed_dim': 8,
        'vision_cfg': vision | {'rope': True, 'naiveswiglu': True, 'subln': True},
        'text_cfg': text,
    }


def shrink(cfg: Config) -> Config:
    """Leave everything as it is, but for weights, widths and sizes."""
    model = cfg.model
    size = 4 * real_tower(model.vlm.arch).patch_size[0]
    model.vlm.update(arch=tiny_arch(model.vlm.arch), checkpoint=None)
    model.aggregator.update(guidance_dims=(8, 8), hidden_dim=8, appearance_dim=8, text_dim=8, window=2)
    model.aggregator.update(decoder_dims=(16, 16), guidance_proj_dims=(4, 4))
    model.update(clip_size=size, squash_size=48, window=32, stride=16)
    step(cfg.train_dataloader, 'ResizeShortestEdge').scale = 32
    for kind, key in (('RandomCrop', 'crop_size'), ('Pad', 'size')):
        step(cfg.train_dataloader, kind)[key] = (32, 32)
    step(cfg.val_dataloader, 'Resize').scale = (128, 32)
    for loader in loaders(cfg):
        loader.update(num_workers=0, persistent_workers=False, batch_size=2)
    return cfg


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> Path:
    """A folder with ``data``, as ``docs/segmentation.md`` lays it out, of generated images."""
    root = tmp_path_factory.mktemp('segmentation')
    generator = np.random.default_rng(0)
    for part in ('train2017', 'val2017'):
        images, labels = (root / 'data' / 'coco_stuff164k' / folder / part for folder in ('images', 'annotations'))
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        for i in range(2):
            values = generator.integers(0, NUM_CLASSES, (4, 4), np.uint8).repeat(10, 0).repeat(13, 1)
            values[:5] = 255
            Image.fromarray(generator.integers(0, 255, (*IMAGE_SIZE, 3), np.uint8)).save(images / f'{i}.jpg')
            Image.fromarray(values).save(labels / f'{i}_labelTrainIds.png')
    return root


@pytest.fixture(scope='module')
def in_data_folder(data) -> Iterator[Path]:
    # on maps this small, threads wait for each other longer than they work
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch, DefaultScope.overwrite_default_scope('mmseg'):
        patch.chdir(data)
        yield data
    torch.set_num_threads(threads)


def batch_of(loader: dict) -> dict:
    return next(iter(Runner.build_dataloader(copy.deepcopy(loader), seed=0)))


def wrap(segmentor: nn.Module, cfg: Config) -> tuple[OptimWrapper, set[str]]:
    """Optimiser, and the names of the parameters that a backward pass will have reached."""
    reached: set[str] = set()
    for name, parameter in segmentor.named_parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda _, name=name: reached.add(name))
    return build_optim_wrapper(segmentor, cfg.optim_wrapper), reached


@every_recipe
def test_trains_and_predicts(name, in_data_folder):
    cfg = shrink(load(name))
    segmentor = MODELS.build(cfg.model).train()
    frozen = {key: value.clone() for key, value in segmentor.named_parameters() if not value.requires_grad}
    wrapper, reached = wrap(segmentor, cfg)
    logged = segmentor.train_step(batch_of(cfg.train_dataloader), wrapper)
    assert logged['loss'].isfinite() and logged['loss'] > 0
    assert reached == {key for key, value in segmentor.named_parameters() if value.requires_grad}
    assert all(torch.equal(value, frozen[key]) for key, value in segmentor.named_parameters() if key in frozen)
    samples = segmentor.eval().val_step(batch_of(cfg.val_dataloader))
    for labels in (sample.pred_sem_seg.data for sample in samples):
        assert labels.shape == (1, *IMAGE_SIZE)
        assert ((labels >= 0) & (labels < NUM_CLASSES)).all()
    metric = METRICS.build(cfg.val_evaluator)
    metric.dataset_meta = Runner.build_dataloader(cfg.val_dataloader).dataset.metainfo
    metric.process(None, [sample.to_dict() for sample in samples])
    assert {'mIoU', 'mIoU_gt', 'thing.mIoU', 'stuff.mIoU'} <= set(metric.compute_metrics(metric.results))


@pytest.mark.parametrize('name', ['catseg_openai-vitb16_coco-stuff_original', 'catseg_vitb16_coco-stuff_original'])
def test_rates_and_decay(name, in_data_folder):
    """Of the towers little more than the attention trains, at a hundredth of the rate; norms do not decay."""
    cfg = shrink(load(name))
    segmentor = MODELS.build(cfg.model)
    wrapper, _ = wrap(segmentor, cfg)
    groups = {id(p): group for group in wrapper.optimizer.param_groups for p in group['params']}
    trained = {key: groups[id(value)] for key, value in segmentor.named_parameters() if value.requires_grad}
    in_tower = {key: group for key, group in trained.items() if key.startswith('vlm.')}
    assert in_tower and all(group['lr'] == pytest.approx(2e-6) for group in in_tower.values())
    assert all('attn' in key and 'bias' not in key for key in in_tower)
    others = {key: group for key, group in trained.items() if key not in in_tower}
    assert all(group['lr'] == pytest.approx(2e-4) for group in others.values())
    decay = {key: group['weight_decay'] for key, group in others.items()}
    assert set(decay.values()) == {0, 1e-4}
    assert all(bool(value) == ('norm' not in key) for key, value in decay.items())


def test_hooks_build():
    cfg = load(RECIPES[0])
    hooks = [HOOKS.build(hook) for hook in (*cfg.default_hooks.values(), *cfg.custom_hooks)]
    assert {type(hook).__name__ for hook in hooks} == {
        'CheckpointHook', 'LoggerHook', 'VLMMetaHook', 'VocabularyCheckHook'
    }  # fmt: skip
