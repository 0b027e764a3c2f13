"""F-ViT on the mini world: configs that differ in the tower alone, and that train on base classes only."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from densevlm_mm.apis import check_config
from densevlm_mm.datasets.miniworld import NOVEL_THINGS
from densevlm_mm.vlm import VLM

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / 'configs' / 'miniworld'
ORIGINAL = 'fvit_tiny_ov-miniworld_original'
TOWERS = {
    ORIGINAL: 'pretrain_student',
    'fvit_tiny_ov-miniworld_densevlm': 'densevlm',
    'fvit_tiny_ov-miniworld_coupled-group-mean': 'densevlm_coupled-group-mean',
}


@pytest.fixture
def load(miniworld, tmp_path, monkeypatch):
    """Loads a config for the small mini world of the tests."""
    monkeypatch.setenv('MINIWORLD_DATA', str(miniworld))
    monkeypatch.setenv('MINIWORLD_WEIGHTS', str(tmp_path))
    # mmengine lays out the config several times per run, which takes longer than everything else
    monkeypatch.setattr('yapf.yapflib.yapf_api.FormatCode', lambda text, **style: (text, False))
    return lambda name: Config.fromfile(CONFIGS / f'{name}.py')


def shrunk(cfg: Config, folder: Path) -> Config:
    """Two steps of two images, from a CLIP with random weights."""
    checkpoint = Path(cfg.model.backbone.checkpoint)
    checkpoint.parent.mkdir()
    torch.save({'state_dict': VLM(cfg.student_arch.to_dict()).state_dict()}, checkpoint)
    cfg.train_dataloader.batch_size = 2
    cfg.train_cfg.max_iters = cfg.default_hooks.checkpoint.interval = 2
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    cfg.work_dir = str(folder / 'run')
    return cfg


def test_configs_are_all_there():
    assert {path.stem for path in CONFIGS.glob('fvit_*.py')} == set(TOWERS)


@pytest.mark.parametrize('name', TOWERS)
def test_configs_differ_in_the_tower_alone(load, tmp_path, name):
    model, original = load(name).model, load(ORIGINAL).model
    assert model.backbone.pop('checkpoint') == str(tmp_path / TOWERS[name] / 'final.pth')
    original.backbone.pop('checkpoint')
    assert model == original


def test_trains_on_base_classes_and_is_evaluated_on_all(load, tmp_path):
    cfg = shrunk(load(ORIGINAL), tmp_path)
    check_config(cfg)
    runner = Runner.from_cfg(cfg)
    tower = {key: value.clone() for key, value in runner.model.tower.state_dict().items()}
    runner.train()
    assert (tmp_path / 'run' / 'iter_2.pth').is_file()
    assert all(torch.equal(value, tower[key]) for key, value in runner.model.tower.state_dict().items())
    vocabulary = runner.model.vocabulary
    assert vocabulary.novel().names == NOVEL_THINGS and len(vocabulary) == 10
    labels = torch.cat([item['data_samples'].gt_instances.labels for item in runner.train_dataloader.dataset])
    assert {vocabulary.split[label] for label in labels.tolist()} == {'base'}
    metrics = runner.test()
    groups = {f'coco/bbox_{group}_{figure}' for group in ('novel', 'base', 'all') for figure in ('ap', 'ap50')}
    assert groups <= set(metrics)
    assert all(0 <= metrics[key] <= 1 for key in groups)


def test_demo_asks_for_what_there_is(load, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    demo = importlib.import_module('demo_detection')
    assert set(demo.DETECTORS.values()) == set(TOWERS)
    cfg = load(ORIGINAL)
    cfg.merge_from_dict({key: float(value) for key, value in (item.split('=') for item in demo.WITHOUT_VLM)})
    fusion = cfg.model.roi_head.score_fusion
    assert (fusion.alpha, fusion.beta) == (0, 0) and fusion.type == 'densevlm_mm.ScoreFusion'
