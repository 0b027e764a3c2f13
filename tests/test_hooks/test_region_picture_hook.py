"""RegionPictureHook: which pictures it makes when, and that training does not notice it."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.hooks import Hook
from mmengine.runner import Runner
from PIL import Image
from torch import nn

from densevlm_mm.datasets import grid_boxes
from densevlm_mm.datasets.miniworld import STUFF, THINGS
from densevlm_mm.evaluation import RegionAccuracy
from densevlm_mm.hooks import RegionPictureHook
from densevlm_mm.hooks import region_picture_hook as module
from densevlm_mm.registry import MODELS
from densevlm_mm.vlm import build_vocabulary, load_vlm

VOCABULARY = {'things': ['car', 'tree', 'ball'], 'stuff': ['sky', 'water']}
TEMPLATES = ['a photo of a {}.']
names = (f'pictures{i}' for i in itertools.count())


class Recorder(Hook):
    """What training looks like after every step: weights, modes, random numbers."""

    priority = 'LOWEST'

    def __init__(self) -> None:
        self.seen: list[tuple] = []
        self.steps: list[tuple[str, int]] = []

    def before_train(self, runner: Runner) -> None:
        original = runner.visualizer.add_image

        def record(name: str, image: np.ndarray, step: int = 0) -> None:
            self.steps.append((name, step))
            original(name, image, step)

        runner.visualizer.add_image = record

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        weights = {name: value.clone() for name, value in runner.model.state_dict().items()}
        modes = [part.training for part in runner.model.modules()]
        numbers = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
        self.seen.append((weights, modes, numbers))


@pytest.fixture
def config(tiny_arch, tmp_path) -> dict:
    """A DenseVLM of two random towers."""
    parts = {'student': tiny_arch(), 'teacher': tiny_arch(width=48, embed_dim=24)}
    for number, (who, arch) in enumerate(parts.items()):
        torch.manual_seed(number)
        torch.save({'state_dict': load_vlm(arch).state_dict()}, tmp_path / f'{who}.pt')
    models = {who: {'arch': arch, 'checkpoint': str(tmp_path / f'{who}.pt')} for who, arch in parts.items()}
    return {
        'type': 'densevlm_mm.DenseVLM',
        'student': {**models['student'], 'trainable_blocks': 2},
        'teacher': models['teacher'],
        'vocabulary': VOCABULARY,
        'loss': {'type': 'densevlm_mm.DecoupledAlignmentLoss', 'score_thr': 0.2},
        'templates': TEMPLATES,
        'eval_vocabulary': {'things': list(THINGS), 'stuff': list(STUFF)},
        'eval_templates': TEMPLATES,
    }


@pytest.fixture
def train(config, miniworld, tmp_path) -> Callable[..., tuple[Recorder, Path]]:
    """Trains with a validation after four iterations; returns what was seen and the folder of the pictures."""
    load = [{'type': 'densevlm_mm.LoadImage'}, {'type': 'densevlm_mm.ResizeLongestPad', 'size': 32}]
    data = {'data_root': str(miniworld)}
    train_data = data | {
        'type': 'densevlm_mm.ImageDataset',
        'data_prefix': {'img_path': 'train2017'},
        'pipeline': [*load, {'type': 'densevlm_mm.SampleGridRegions'}, {'type': 'densevlm_mm.PackRegions'}],
    }
    val_data = data | {
        'type': 'densevlm_mm.PanopticRegionDataset',
        'ann_file': 'annotations/panoptic_val2017.json',
        'data_prefix': {'img_path': 'val2017', 'seg_map_path': 'annotations/panoptic_val2017'},
        'test_mode': True,
        'indices': 2,
        'pipeline': [
            *load,
            {'type': 'densevlm_mm.LoadPanopticRegions', 'patch_size': 8, 'area_range': (16, 10**6)},
            {'type': 'densevlm_mm.PackRegions'},
        ],
    }

    def run(*hooks: Hook, max_iters: int = 6, validate: bool = False, **options: object) -> tuple[Recorder, Path]:
        recorder, folder = Recorder(), tmp_path / next(names)
        sampler = {'type': 'densevlm_mm.EpochSampler'}
        if validate:
            plain = {'type': 'DefaultSampler', 'shuffle': False}
            options |= {
                'val_dataloader': {'batch_size': 1, 'num_workers': 0, 'sampler': plain, 'dataset': val_data},
                'val_cfg': {},
                'val_evaluator': Evaluator(RegionAccuracy()),
            }
        runner = Runner(
            config,
            work_dir=str(folder),
            train_dataloader={'batch_size': 4, 'num_workers': 0, 'sampler': sampler, 'dataset': train_data},
            train_cfg={'by_epoch': False, 'max_iters': max_iters, 'val_interval': 4},
            optim_wrapper={'optimizer': {'type': 'AdamW', 'lr': 0.01}},
            default_hooks={'checkpoint': None, 'logger': None, 'sampler_seed': None},
            custom_hooks=[*hooks, recorder],
            experiment_name=folder.name,
            log_level='ERROR',
            randomness={'seed': 3},
            **options,
        )
        runner.train()
        return recorder, folder

    return run


def test_training_does_not_notice_the_hook(train):
    """Weights, modes and random numbers are the same, bit for bit, after every step."""
    (plain, _), (drawn, folder) = train(), train(RegionPictureHook(interval=2, num_images=1))
    assert len(list(folder.rglob('*.png'))) == 5
    assert len(drawn.seen) == len(plain.seen) == 6
    for (weights, modes, numbers), (others, other_modes, other_numbers) in zip(plain.seen, drawn.seen, strict=True):
        assert [name for name in weights if not torch.equal(weights[name], others[name])] == []
        assert modes == other_modes
        assert torch.equal(numbers[0], other_numbers[0])
        assert np.array_equal(numbers[1], other_numbers[1]) and numbers[2] == other_numbers[2]
    first, last = drawn.seen[0][0], drawn.seen[-1][0]
    assert any(not torch.equal(first[name], last[name]) for name in first)


def test_pictures_of_the_same_images_come_at_their_times(train, monkeypatch):
    drawn = []

    def draw(image, boxes, labels, scores, vocabulary, *, score_thr):
        drawn.append((image, len(boxes), vocabulary.names, score_thr))
        return image

    monkeypatch.setattr(module, 'draw_regions', draw)
    _, folder = train(RegionPictureHook(interval=3, num_images=2, grid=(2, 3)), validate=True)
    files = sorted(path.stem for path in folder.rglob('*.png'))
    assert files == sorted(
        [f'regions{i}_teacher_0' for i in (0, 1)]
        + [f'regions{i}_student_{step}' for i in (0, 1) for step in (0, 3, 4, 6)]
    )
    assert {entry[1:] for entry in drawn} == {(6, ('car', 'tree', 'ball', 'sky', 'water'), 0.2)}
    images = [entry[0] for entry in drawn]
    assert images[0].shape == (48, 48, 3)
    assert all(np.array_equal(image, images[-2 + i % 2]) for i, image in enumerate(images[4:]))
    assert not np.array_equal(images[-1], images[-2])


def test_what_is_retrieved_is_what_the_loss_sees(train, config, miniworld, monkeypatch):
    """The share of regions above the threshold, from the pictures and from the loss."""
    found = {}

    def retrieve(features, texts, scale):
        found[len(texts[0])] = original(features, texts, scale)
        return found[len(texts[0])]

    original = module._retrieve
    monkeypatch.setattr(module, '_retrieve', retrieve)
    train(RegionPictureHook(num_images=1, grid=(3, 2)), max_iters=1)
    model = MODELS.build(config)
    path = sorted((miniworld / 'train2017').iterdir())[0]
    pixels = Image.open(path).convert('RGB').resize((32, 32), Image.Resampling.BICUBIC)
    inputs = model.data_preprocessor({'inputs': torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None]})['inputs']
    boxes = grid_boxes(32, 32, 3, 2)[None] / 32
    for width, features, texts in (
        (16, model.student_regions(inputs, boxes)[0], model.student_text),
        (24, model.teacher(inputs, boxes)[0], model.teacher_text),
    ):
        confidence, label = model.alignment_loss._logits(features, texts).softmax(-1).max(-1)
        np.testing.assert_array_equal(found[width][0], label)
        np.testing.assert_allclose(found[width][1], confidence.detach(), rtol=1e-4)


def test_own_images_and_vocabulary(train, miniworld, monkeypatch):
    drawn = []
    monkeypatch.setattr(module, 'draw_regions', lambda image, *rest, **options: drawn.append((rest, options)) or image)
    image = str(next((miniworld / 'val2017').iterdir()))
    hook = RegionPictureHook(
        images=[image], vocabulary=['car', 'fish'], templates=TEMPLATES, size=64, score_thr=0.7, interval=100
    )
    recorder, folder = train(hook, max_iters=1)
    ((rest, options),) = drawn  # no teacher: its text tower is gone
    assert rest[3] == build_vocabulary(['car', 'fish']) and set(rest[1]) <= {0, 1}
    assert options == {'score_thr': 0.7}
    assert [path.name for path in folder.rglob('*.png')] == ['regions0_student_0.png']


def test_nothing_is_drawn_when_told_so(train):
    _, folder = train(RegionPictureHook(draw=False, interval=1), max_iters=2)
    assert list(folder.rglob('*.png')) == []


def test_models_and_data_it_cannot_draw():
    with pytest.raises(ValueError, match='must be positive, got 0 and 4'):
        RegionPictureHook(interval=0)
    hook = RegionPictureHook()
    with pytest.raises(ValueError, match='list tells no paths of its images: set images'):
        hook._find_images(torch.utils.data.DataLoader([1]))
    runner = type('Runner', (), {'model': nn.Linear(1, 1)})()
    with pytest.raises(TypeError, match='not Linear'):
        hook._draw(runner, 0)
