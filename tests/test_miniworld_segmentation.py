"""Segmentation of the mini world: configs that differ in the tower alone, and that train on seen classes only."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

pytest.importorskip('mmseg')

from mmengine.runner import Runner

from densevlm_mm.apis import check_config, load_weights
from densevlm_mm.datasets.miniworld import NOVEL_THINGS
from densevlm_mm.datasets.semantic_maps import convert_panoptic
from densevlm_mm.vlm import VLM, build_vocabulary
from densevlm_mm.vlm.towers import EvaTower

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / 'configs' / 'miniworld'
ORIGINAL = 'catseg_tiny_ov-miniworld_original'
TRAINING_FREE = 'segment_tiny_miniworld'
TOWERS = {ORIGINAL: 'pretrain_student', 'catseg_tiny_ov-miniworld_densevlm': 'densevlm'}


@pytest.fixture
def world(miniworld, tmp_path) -> Path:
    """The small mini world of the tests, in a folder where label maps can be added."""
    root = tmp_path / 'world'
    (root / 'annotations').mkdir(parents=True)
    for path in (*miniworld.glob('*2017'), *miniworld.glob('annotations/*')):
        (root / path.relative_to(miniworld)).symlink_to(path)
    return root


@pytest.fixture
def load(world, tmp_path, monkeypatch):
    """Loads a config for this world."""
    monkeypatch.setenv('MINIWORLD_DATA', str(world))
    monkeypatch.setenv('MINIWORLD_WEIGHTS', str(tmp_path))
    # mmengine lays out the config several times per run, which takes longer than everything else
    monkeypatch.setattr('yapf.yapflib.yapf_api.FormatCode', lambda text, **style: (text, False))
    return lambda name: Config.fromfile(CONFIGS / f'{name}.py')


@pytest.fixture
def label_maps(world, load) -> None:
    """What tools/demo_segmentation.py makes of the panoptic maps."""
    cfg, folder = load(ORIGINAL), world / 'annotations'
    for part, out, key in (('train2017', 'train2017_seen', 'seen'), ('val2017', 'val2017', 'vocabulary')):
        maps, vocabulary = folder / f'panoptic_{part}', build_vocabulary(cfg[key])
        convert_panoptic(maps.with_suffix('.json'), maps, folder / f'semantic_{out}', vocabulary=vocabulary)


def save_clip(cfg: Config, path: Path) -> Path:
    """A CLIP with random weights."""
    path.parent.mkdir()
    torch.save({'state_dict': VLM(cfg.student_arch.to_dict()).state_dict()}, path)
    return path


def test_configs_are_all_there():
    assert {path.stem for path in CONFIGS.glob('catseg_*.py')} == set(TOWERS)


@pytest.mark.parametrize('name', TOWERS)
def test_configs_differ_in_the_tower_alone(load, tmp_path, name):
    cfg, original = load(name), load(ORIGINAL)
    assert cfg.model.vlm.pop('checkpoint') == str(tmp_path / TOWERS[name] / 'final.pth')
    original.model.vlm.pop('checkpoint')
    assert cfg.to_dict() == original.to_dict()


def test_classes_are_those_of_the_world(load, world):
    cfg = load(ORIGINAL)
    everything, seen = build_vocabulary(cfg.vocabulary), build_vocabulary(cfg.seen)
    categories = build_vocabulary(str(world / 'annotations' / 'panoptic_val2017.json'))
    assert (everything.names, everything.is_thing) == (categories.names, categories.is_thing)
    assert everything.base().names == seen.names and everything.base().is_thing == seen.is_thing
    novel = everything.novel()
    assert novel.names[: novel.num_things] == NOVEL_THINGS and novel.num_stuff == 3
    assert cfg.model.vocabulary == cfg.train_dataloader.dataset.vocabulary == cfg.seen


def test_trains_on_seen_classes_and_is_evaluated_on_all(load, label_maps, world, tmp_path):
    cfg = load(ORIGINAL)
    save_clip(cfg, Path(cfg.model.vlm.checkpoint))
    cfg.train_dataloader.batch_size = 2
    cfg.train_cfg.max_iters = cfg.default_hooks.checkpoint.interval = 2
    cfg.work_dir = str(tmp_path / 'run')
    check_config(cfg)
    runner = Runner.from_cfg(cfg)
    tower = {key: value.clone() for key, value in runner.model.vlm.state_dict().items()}
    runner.train()
    assert all(torch.equal(value, tower[key]) for key, value in runner.model.vlm.state_dict().items())
    labels = torch.cat([item['data_samples'].gt_sem_seg.data.unique() for item in runner.train_dataloader.dataset])
    assert set(labels.tolist()) == {*range(len(runner.model.vocabulary)), 255}
    test = load(ORIGINAL)
    test.model.vocabulary = str(world / 'annotations' / 'panoptic_val2017.json')
    test.work_dir = str(tmp_path / 'run')
    tester = Runner.from_cfg(test)
    load_weights(tester, str(tmp_path / 'run' / 'iter_2.pth'))
    metrics = tester.test()
    assert {'mIoU', 'thing.mIoU', 'stuff.mIoU', 'novel.mIoU', 'base.mIoU'} <= set(metrics)


@pytest.mark.parametrize('mode', ['value', 'all'])
def test_segments_without_training(load, label_maps, tmp_path, mode):
    cfg = load(TRAINING_FREE)
    cfg.model.vlm.dense_mode = mode
    cfg.work_dir = str(tmp_path / 'run')
    check_config(cfg, train=False)
    runner = Runner.from_cfg(cfg)
    load_weights(runner, str(save_clip(cfg, tmp_path / 'clip' / 'clip.pth')))
    assert runner.model.vlm.dense_mode == mode
    assert {'mIoU', 'thing.mIoU', 'stuff.mIoU'} <= set(runner.test())


def test_demo_shows_every_mode_and_the_means(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    demo = importlib.import_module('demo_segmentation')
    results = {
        seed: {
            tower: {mode: dict.fromkeys(demo.COLUMNS.values(), seed + i) for mode in demo.MODES}
            for tower in demo.TOWERS
        }
        for i, seed in enumerate((1.0, 2.0))
    }
    lines = demo.modes_table(results).splitlines()
    assert len(lines) == 2 + 3 * len(demo.TOWERS)
    assert lines[-1] == '| mean | DenseVLM |' + ' 2.0 / 2.0 / 2.0 |' * len(demo.MODES)
    assert demo.modes_table({0: results[1.0]}).splitlines()[-1] == '| 0 | DenseVLM |' + ' 1.0 / 1.0 / 1.0 |' * len(
        demo.MODES
    )


def test_demo_asks_for_what_there_is(load, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    demo = importlib.import_module('demo_segmentation')
    assert set(demo.SEGMENTORS.values()) == set(TOWERS)
    assert demo.TRAINING_FREE == TRAINING_FREE and set(demo.MODES) == set(EvaTower.dense_modes)
    assert {demo.TOWERS[name]: config for name, config in demo.SEGMENTORS.items()} == {
        tower: config for config, tower in TOWERS.items()
    }
    vocabulary = demo.vocabulary()
    figures = [{'name': name, 'iou': float(i)} for i, name in enumerate(vocabulary.names)]
    (tmp_path / 'figures.json').write_text(json.dumps({'per_class': figures}))
    parts = demo.parts_of(tmp_path / 'figures.json')
    assert list(parts) == list(demo.PARTS.values())
    novel = vocabulary.novel().indices
    assert parts['novel things'] == pytest.approx(sum(novel[:3]) / 3)
    assert parts['novel stuff'] == pytest.approx(sum(novel[3:]) / 3)
