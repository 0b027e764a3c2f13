#!/usr/bin/env python
"""Try the package on the OpenMMLab distribution that is installed, the originals or their forks, in a minute on a CPU.

Imports every module, reads every config, builds one of every folder, and lets a DenseVLM, a detector and two segmentors
of the mini world train, resume and predict, with random weights. Exit status 1 if a step fails.

Example:
    python tools/misc/smoke.py
    python tools/misc/smoke.py detection segmentation
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import pkgutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault('HF_HUB_OFFLINE', '1')  # before anything imports huggingface_hub: nothing is downloaded

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

import densevlm_mm
from densevlm_mm import compat
from densevlm_mm.apis import check_config, load_weights
from densevlm_mm.datasets.miniworld import generate_miniworld
from densevlm_mm.datasets.semantic_maps import convert_panoptic
from densevlm_mm.registry import MODELS
from densevlm_mm.vlm import VLM, build_vocabulary

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
DETECTOR = 'fvit_tiny_ov-miniworld_original'
SEGMENTOR = 'catseg_tiny_ov-miniworld_original'
# its language model comes from the net
NOT_BUILT = ('mm-grounding-dino',)
WEIGHTS = ('checkpoint', 'init_cfg', 'pretrained')
# in place of every CLIP that a config names: as many blocks as a ViT-L has, and hardly any width
VISION = {'image_size': 64, 'patch_size': 16, 'layers': 24, 'width': 16, 'head_width': 16, 'mlp_ratio': 2.6667}
EVA = {'eva_model_name': 'tiny', 'pt_hw_seq_len': 4, 'rope': True, 'naiveswiglu': True, 'subln': True}
TEXT = {'width': 8, 'heads': 2, 'layers': 1}


def check_imports() -> str:
    """Import all modules of the package, and compiled operators."""
    modules = [item.name for item in pkgutil.walk_packages(densevlm_mm.__path__, 'densevlm_mm.')]
    for name in modules:
        importlib.import_module(name)
    for name in compat.SUPPORTED:
        compat.require(name)
    compat.require_mmcv_ops('The smoke test')
    return f'{len(modules)} modules'


def config_files() -> list[Path]:
    """All configs that are meant to be run."""
    return sorted(path for path in CONFIGS.rglob('*.py') if '_base_' not in path.parts)


def check_configs() -> str:
    """Read all configs, those that they inherit from MMDetection and MMSegmentation included."""
    paths = config_files()
    for path in paths:
        _of_file(path, lambda path: Config.fromfile(path).model)
    return f'{len(paths)} configs'


def check_models() -> str:
    """Build the first model of every folder, and each stock model with our backbone, all on a small random CLIP."""
    built = [path for path in _one_per_folder() if not path.stem.startswith(NOT_BUILT)]
    for path in built:
        _of_file(path, _build)
        gc.collect()
    return f'{len(built)} models'


def _one_per_folder() -> Iterator[Path]:
    seen = set()
    for path in config_files():
        if path.parent not in seen or path.parent.name == 'swap':
            yield path
        seen.add(path.parent)


def _build(path: Path) -> None:
    cfg = Config.fromfile(path)
    _shrink(cfg.model)
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmengine')):
        MODELS.build(cfg.model)


def _shrink(node: Any) -> None:
    if isinstance(node, dict):
        for key, value in node.items():
            if key in WEIGHTS:
                node[key] = None
            elif key == 'arch' and isinstance(value, str):
                vision = VISION | EVA if value.startswith('EVA') else VISION
                node[key] = {'embed_dim': 16, 'vision_cfg': vision, 'text_cfg': TEXT}
            elif key == 'nouns':
                node[key] = ['cat', 'dog']
            else:
                _shrink(value)
    elif isinstance(node, (list, tuple)):
        for item in node:
            _shrink(item)


def _of_file(path: Path, do: Callable[[Path], Any]) -> None:
    try:
        do(path)
    except Exception as error:
        raise RuntimeError(f'{path.relative_to(CONFIGS.parent)}: {type(error).__name__}: {error}') from error


def make_world(root: Path) -> None:
    """A mini world with label maps, and CLIPs with random weights, where the mini world's configs look for them."""
    os.environ['MINIWORLD_DATA'], os.environ['MINIWORLD_WEIGHTS'] = str(root / 'data'), str(root)
    os.environ['DENSEVLM_CACHE'] = str(root / 'cache')
    generate_miniworld(root / 'data', num_train=24, num_val=8, size=48)
    cfg, annotations = _miniworld(SEGMENTOR), root / 'data' / 'annotations'
    for part, suffix, classes in (('train2017', '_seen', cfg.seen), ('val2017', '', cfg.vocabulary)):
        maps, out = annotations / f'panoptic_{part}', annotations / f'semantic_{part}{suffix}'
        convert_panoptic(maps.with_suffix('.json'), maps, out, vocabulary=build_vocabulary(classes))
    torch.manual_seed(0)
    for part in ('student', 'teacher'):
        path = root / f'pretrain_{part}' / 'final.pth'
        path.parent.mkdir()
        torch.save({'state_dict': VLM(cfg[f'{part}_arch'].to_dict()).state_dict()}, path)


def _miniworld(name: str) -> Config:
    return Config.fromfile(CONFIGS / 'miniworld' / f'{name}.py')


def run_densevlm(root: Path) -> str:
    """Two steps of distillation, one more on resuming, and region accuracy of the student."""
    cfg = _miniworld('densevlm_tiny_miniworld')
    # with random weights, nothing is recognised with confidence
    cfg.model.loss.score_thr = 0.0
    cfg.val_dataloader.dataset.pipeline[2].area_range = (1, 1024**2)
    cfg.test_dataloader = cfg.val_dataloader
    checkpoint = _train(cfg, root / 'runs' / 'densevlm')
    return f'trained, resumed, {_test(_miniworld("eval_student_miniworld"), checkpoint)}'


def run_detection(root: Path) -> str:
    """Likewise a detector, evaluated on base and novel classes; and MMDetection's own functions on one image."""
    from mmdet.apis import inference_detector, init_detector

    checkpoint = _train(_miniworld(DETECTOR), root / 'runs' / 'detection')
    metrics = _test(_miniworld(DETECTOR), checkpoint)
    cfg = _miniworld(DETECTOR)
    # an untrained detector is sure of nothing
    cfg.model.test_cfg.rcnn.score_thr = 0.0
    detector = init_detector(cfg, str(checkpoint), device='cpu')
    found = inference_detector(detector, _image()).pred_instances
    if not len(found) or not found.scores.isfinite().all():
        raise RuntimeError('the detector finds nothing, with a score threshold of zero')
    return f'trained, resumed, {metrics}, {len(found)} boxes'


def run_segmentation(root: Path) -> str:
    """Likewise CAT-Seg; and MMSegmentation's own functions on one image."""
    from mmseg.apis import inference_model, init_model

    checkpoint = _train(_miniworld(SEGMENTOR), root / 'runs' / 'segmentation')
    cfg = _miniworld(SEGMENTOR)
    cfg.model.vocabulary = cfg.vocabulary
    metrics = _test(cfg, checkpoint)
    cfg.test_pipeline = cfg.test_dataloader.dataset.pipeline
    # what the configs of real data have; MMSegmentation swaps in its own loader by a bare name
    cfg.default_scope = 'mmseg'
    labels = inference_model(init_model(cfg, str(checkpoint), device='cpu'), _image()).pred_sem_seg.data
    if labels.shape != (1, *_image().shape[:2]):
        raise RuntimeError(f'labels of shape {tuple(labels.shape)} for an image of {_image().shape[:2]}')
    return f'trained, resumed, {metrics}, {len(labels.unique())} classes'


def run_training_free(root: Path) -> str:
    """Segmentation by a CLIP as it is."""
    return _test(_miniworld('segment_tiny_miniworld'), root / 'pretrain_student' / 'final.pth')


def _image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)


def _train(cfg: Config, folder: Path) -> Path:
    """Two steps, then a third from the checkpoint of the second; returns the last checkpoint."""
    cfg.train_dataloader.batch_size = 2
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    cfg.default_hooks.checkpoint.interval = 1
    for steps in (2, 3):
        cfg.train_cfg.max_iters = steps
        runner = _runner(cfg, folder / str(steps), train=True)
        runner.train()
        cfg.resume, cfg.load_from = True, str(folder / str(steps) / f'iter_{steps}.pth')
        if runner.iter != steps or not Path(cfg.load_from).is_file():
            raise RuntimeError(f'training stopped after {runner.iter} of {steps} steps')
    losses = {name: log.current() for name, log in runner.message_hub.log_scalars.items() if 'loss' in name}
    if not losses or not np.isfinite(list(losses.values())).all():
        raise RuntimeError(f'losses that are no numbers: {losses}')
    return Path(cfg.load_from)


def _test(cfg: Config, checkpoint: Path) -> str:
    runner = _runner(cfg, checkpoint.parent / 'test', train=False)
    load_weights(runner, str(checkpoint))
    metrics = runner.test()
    if not metrics:
        raise RuntimeError('the evaluation gives no figures')
    return f'{len(metrics)} figures'


def _runner(cfg: Config, work_dir: Path, *, train: bool) -> Runner:
    cfg.work_dir = str(work_dir)
    # runs of one process need names of their own
    cfg.experiment_name = f'smoke_{work_dir.parent.name}_{work_dir.name}_{id(cfg)}'
    cfg.log_level = 'ERROR'
    check_config(cfg, train=train)
    return Runner.from_cfg(cfg)


CHECKS = {'imports': check_imports, 'configs': check_configs, 'models': check_models}
RUNS = {
    'densevlm': run_densevlm,
    'detection': run_detection,
    'segmentation': run_segmentation,
    'training_free': run_training_free,
}


def attempt(name: str, step: Callable[..., str], *args: Path) -> bool:
    """Run a step and print a line about it; False if it fails."""
    start = time.monotonic()
    try:
        found = step(*args)
    except Exception:
        traceback.print_exc()
        print(f'FAILED {name}', flush=True)
        return False
    print(f'ok     {name:<14} {found} ({time.monotonic() - start:.0f} s)', flush=True)
    return True


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [*CHECKS, *RUNS]
    parser.add_argument('steps', nargs='*', metavar='STEP', help=f'of {", ".join(names)} (default: all)')
    args = parser.parse_args(argv)
    unknown = [name for name in args.steps if name not in names]
    if unknown:
        parser.error(f'unknown step {unknown[0]!r}, choose from {", ".join(names)}')
    args.steps = args.steps or names
    return args


def main(argv: list[str] | None = None) -> int:
    """Run the command; 1 when a step fails."""
    args = parse_args(argv)
    for name, description in compat.collect_env().items():
        print(f'{name:<14} {description}')
    done = [attempt(name, check) for name, check in CHECKS.items() if name in args.steps]
    runs = {name: run for name, run in RUNS.items() if name in args.steps}
    if runs:
        with tempfile.TemporaryDirectory() as folder:
            make_world(Path(folder))
            done += [attempt(name, run, Path(folder)) for name, run in runs.items()]
    print(f'{sum(done)} of {len(done)} steps work')
    return 0 if all(done) else 1


if __name__ == '__main__':
    sys.exit(main())
