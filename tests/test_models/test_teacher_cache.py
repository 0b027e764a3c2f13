"""The teacher cache: same numbers found as made, nothing of another teacher, and no teacher where none is needed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.structures import BaseDataElement
from torch import Tensor

from densevlm_mm.datasets import PackRegions, SampleGridRegions
from densevlm_mm.models import DecoupledAlignmentLoss, DenseVLM
from densevlm_mm.models.distillers import densevlm, feature_store
from densevlm_mm.models.distillers.teacher_cache import TeacherCache
from densevlm_mm.registry import MODELS
from densevlm_mm.vlm import load_vlm

VOCABULARY = {'things': ['car', 'tree', 'ball'], 'stuff': ['sky', 'water']}
Batch = tuple[Tensor, list[BaseDataElement]]


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory, tiny_arch) -> dict[str, dict]:
    """Arguments of `load_vlm` for a student, a wider teacher and another teacher of that make."""
    folder = tmp_path_factory.mktemp('checkpoints')
    parts = {'student': tiny_arch(), 'teacher': tiny_arch(48, 24), 'other': tiny_arch(48, 24)}
    for number, (who, arch) in enumerate(parts.items()):
        torch.manual_seed(number)
        torch.save({'state_dict': load_vlm(arch).state_dict()}, folder / f'{who}.pt')
    return {who: {'arch': arch, 'checkpoint': str(folder / f'{who}.pt')} for who, arch in parts.items()}


@pytest.fixture
def build(checkpoints, tmp_path) -> Callable[..., DenseVLM]:
    """Builds a distiller with a cache in this test's folder, some entries of its config replaced."""

    def make(**changes: object) -> DenseVLM:
        config = {
            'type': 'densevlm_mm.DenseVLM',
            'student': {**checkpoints['student'], 'trainable_blocks': 2},
            'teacher': checkpoints['teacher'],
            'teacher_cache': {'folder': str(tmp_path / 'cache')},
            'vocabulary': VOCABULARY,
            'loss': {'type': 'densevlm_mm.DecoupledAlignmentLoss', 'score_thr': 0.0},
            'templates': ['a photo of a {}.'],
        }
        return MODELS.build({**config, **changes})

    return make


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)


def item(number: int, epoch: int = 0, **options: object) -> tuple[Tensor, BaseDataElement]:
    """One of some images as the pipeline packs it, 48 x 64 px within 64 x 64."""
    image = np.zeros((64, 64, 3), np.uint8)
    image[:48] = np.random.default_rng(number).integers(0, 256, (48, 64, 3), np.uint8)
    results = {'img': image, 'img_path': f'{number}.jpg', 'ori_shape': (48, 64), 'img_shape': (64, 64), 'scale': 1.0}
    results |= {'epoch': epoch, 'sample_idx': number}
    packed = PackRegions(fingerprint=True)(SampleGridRegions(**options)(results))
    return (packed['inputs'].float() - 128) / 64, packed['data_samples']


def batch(*numbers: int, **options: object) -> Batch:
    images, samples = zip(*(item(number, **options) for number in numbers), strict=True)
    return torch.stack(images), list(samples)


def regions(model: DenseVLM, images: Tensor, samples: list[BaseDataElement]) -> tuple[Tensor, float]:
    features, share = model.cached_regions(images, samples)
    return features, share.item()


@pytest.fixture
def forbid_teacher(monkeypatch) -> Callable[[], None]:
    """From now on, loading a teacher fails."""

    def refuse(config: object) -> None:
        raise AssertionError('the teacher is loaded')

    return lambda: monkeypatch.setattr(densevlm, 'load_on_device', refuse)


def test_found_features_are_the_made_ones_and_the_teachers(build):
    images, samples = batch(0, 1, 2)
    cold = build()
    made, share = regions(cold, images, samples)
    assert share == 0
    found, share = regions(build(), images, samples)
    assert share == 1
    assert torch.equal(made, found) and made.dtype == torch.float32
    boxes = [sample.gt_regions.boxes for sample in samples]
    for features, image, box in zip(made, images, boxes, strict=True):
        expected = cold.teacher(image[None], box[None])[0]
        torch.testing.assert_close(features[: len(box)], expected, rtol=6e-4, atol=1e-6)
        assert (features[len(box) :] == 0).all()


def test_another_grid_of_a_known_image_is_found(build, forbid_teacher):
    model = build()
    regions(model, *batch(0, 1))
    teacher = model.teacher
    forbid_teacher()
    model = build()
    for epoch in range(1, 8):
        for options in ({}, {'shuffle': True}, {'max_regions': 3}):
            images, samples = batch(0, 1, epoch=epoch, **options)
            features, share = regions(model, images, samples)
            assert share == 1
            for found, image, sample in zip(features, images, samples, strict=True):
                boxes = sample.gt_regions.boxes
                torch.testing.assert_close(
                    found[: len(boxes)], teacher(image[None], boxes[None])[0], rtol=6e-4, atol=1e-6
                )


def test_a_batch_may_hold_both_and_an_image_twice(build):
    model = build()
    regions(model, *batch(0, 1))
    seen = []
    run = model._run_teacher
    model._run_teacher = lambda images, boxes: seen.append((len(images), boxes.shape)) or run(images, boxes)
    images, samples = batch(2, 0, 3, 2)
    features, share = regions(model, images, samples)
    assert seen == [(2, (2, 309, 4))] and share == 0.25
    again, share = regions(model, images, samples)
    assert share == 1 and len(seen) == 1
    assert torch.equal(features, again) and torch.equal(features[0], features[3])


def test_training_is_the_same_from_a_cold_and_from_a_warm_cache(build):
    def train() -> tuple[dict, list[float]]:
        torch.manual_seed(0)
        model = build().train()
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        drawn = []
        for epoch in (0, 1):
            for numbers in ((0, 1), (2, 3)):
                losses = model(*batch(*numbers, epoch=epoch), mode='loss')
                optimizer.zero_grad()
                (losses['loss_thing'] + losses['loss_stuff']).backward()
                optimizer.step()
                drawn += [losses['cached_share'].item(), torch.rand(()).item()]
        return model.state_dict(), drawn

    (cold, drawn), (warm, drawn_again) = train(), train()
    assert drawn[::2] == [0, 0, 1, 1] and drawn_again[::2] == [1] * 4
    assert drawn[1::2] == drawn_again[1::2]
    assert all(torch.equal(cold[name], warm[name]) for name in cold)


def test_without_a_cache_the_loss_is_nearly_the_same(build):
    images, samples = batch(0, 1, 2)
    with_cache, without = (build(teacher_cache=c)(images, samples, mode='loss') for c in ({'folder': 'x'}, None))
    assert 'cached_share' not in without
    for name, value in without.items():
        torch.testing.assert_close(with_cache[name], value, rtol=2e-3, atol=1e-6)


def test_rounding_hardly_changes_the_loss():
    """At the sizes, the threshold and the scale of the main recipe; docs/teacher_cache.md quotes the bounds."""
    loss, changes = DecoupledAlignmentLoss(159, score_thr=0.3), []
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        texts, regions = [], []
        for width in (512, 768):
            texts.append(0.91 * F.normalize(torch.randn(273, width, generator=generator), dim=-1))
            shown = 0.1 * texts[-1][torch.randint(273, (576,), generator=generator)]
            regions.append(shown + F.normalize(torch.randn(576, width, generator=generator), dim=-1))
        student, teacher = (F.normalize(features, dim=-1) for features in regions)
        rounded = teacher.half().float()
        assert ((rounded - teacher).norm(dim=-1) / teacher.norm(dim=-1)).max() < 2.5e-4
        exact, found = (loss(student, features, *texts) for features in (teacher, rounded))
        assert 100 < exact['num_kept'] < 576  # some regions are near the threshold
        totals = [(losses['loss_thing'] + losses['loss_stuff']).item() for losses in (exact, found)]
        changes.append(abs(totals[1] / totals[0] - 1))
    assert 0 < np.median(changes) < 1e-5
    assert max(changes) < 2e-3  # a region that crosses the threshold


def test_damaged_record_is_made_again(build, tmp_path):
    images, samples = batch(0, 1)
    made, _ = regions(build(), images, samples)
    (path,) = tmp_path.glob('cache/*/*.features')
    content = np.fromfile(path, np.uint8)
    content[: len(content) // 2] ^= 1  # all of the first image
    content.tofile(path)
    model = build()
    with pytest.warns(UserWarning, match='damaged'):
        features, share = regions(model, images, samples)
    assert share == 0.5
    torch.testing.assert_close(features, made, rtol=1e-3, atol=1e-6)
    with pytest.warns(UserWarning, match='damaged'):
        assert regions(build(), images, samples)[1] == 1


def shares(build: Callable[..., DenseVLM], **changes: object) -> float:
    images, samples = batch(0, 1)
    return regions(build(**changes), images, samples)[1]


def test_features_of_another_teacher_are_not_found(build, checkpoints, tmp_path, tiny_arch):
    assert shares(build) == 0
    teacher = checkpoints['teacher']
    others = [
        {'teacher': checkpoints['other']},
        {'teacher': {**teacher, 'dtype': 'bfloat16'}},
        {'teacher': {**teacher, 'dense_mode': 'vanilla'}},
        {'teacher_cache': {'folder': str(tmp_path / 'cache'), 'max_split': 7}},
        {'data_preprocessor': {'type': 'ImgDataPreprocessor', 'mean': [128.0] * 3, 'std': [64.0] * 3}},
    ]
    for changes in others:
        assert shares(build, **changes) == 0
        assert shares(build, **changes) == 1
    assert shares(build) == 1
    manifests = [json.loads(path.read_text()) for path in tmp_path.glob('cache/*/manifest.json')]
    assert len(manifests) == 6
    assert {'format', 'teacher', 'pixels', 'autocast', 'grids', 'width'} == set(manifests[0])


def test_autocast_has_features_of_its_own(build):
    images, samples = batch(0)
    model = build()
    regions(model, images, samples)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert regions(model, images, samples)[1] == 0
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert regions(build(), images, samples)[1] == 1


def test_teacher_is_known_by_the_content_of_its_file(build, checkpoints, tmp_path):
    assert shares(build) == 0
    teacher, path = checkpoints['teacher'], tmp_path / 'moved.pt'
    path.write_bytes(Path(teacher['checkpoint']).read_bytes())
    moved = {**teacher, 'checkpoint': str(path), 'device': 'cpu', 'dtype': None, 'compile': False}
    assert shares(build, teacher=moved, vocabulary={'things': ['car'], 'stuff': ['sky']}) == 1
    path.write_bytes(Path(checkpoints['other']['checkpoint']).read_bytes())
    os.utime(path, ns=(0, 0))
    assert shares(build, teacher=moved) == 0


@pytest.mark.parametrize('damage', [bytes(64), b'\xff' * 70])
def test_damaged_digest_of_the_teacher_is_made_again(build, tmp_path, damage):
    assert shares(build) == 0
    (known,) = tmp_path.glob('cache/weights/*')
    digest = known.read_bytes()
    known.write_bytes(damage)
    assert shares(build) == 1
    assert known.read_bytes() == digest


def test_random_teacher_is_known_by_its_weights(build, checkpoints):
    def share() -> float:
        return shares(build, teacher={'arch': checkpoints['teacher']['arch']})

    torch.manual_seed(0)
    assert share() == share() == 0
    torch.manual_seed(0)
    assert share() == 1


def test_complete_cache_needs_no_teacher(build, forbid_teacher):
    cold = build()
    assert shares(build) == 0
    forbid_teacher()
    model = build()
    assert model.teacher is None
    assert torch.equal(model.teacher_text, cold.teacher_text)
    images, samples = batch(0, 1)
    assert model(images, samples, mode='loss')['cached_share'] == 1
    assert model.teacher is None
    with pytest.raises(AssertionError, match='the teacher is loaded'):
        model(*batch(2), mode='loss')
    with pytest.raises(AssertionError, match='the teacher is loaded'):
        build(templates=['a {}.'])


def test_stored_class_embeddings(build, tmp_path):
    first = build()
    assert torch.equal(build(normalize_text=True).teacher_text, F.normalize(first.teacher_text, dim=-1))
    (path,) = tmp_path.glob('cache/texts/*.pt')
    path.write_bytes(path.read_bytes()[:100])
    assert torch.equal(build().teacher_text, first.teacher_text)
    model = build()
    assert model.teacher is None and torch.equal(model.teacher_text, first.teacher_text)


def test_folder_that_can_only_be_read_is_enough(build, monkeypatch):
    assert shares(build) == 0

    def refuse(*_: object) -> None:
        raise OSError(30, 'Read-only file system')

    monkeypatch.setattr('densevlm_mm.models.distillers.teacher_cache.save_atomically', refuse)
    monkeypatch.setattr(feature_store, '_append', refuse)
    assert shares(build) == 1
    with pytest.warns(UserWarning, match='is not kept .Read-only file system.'):
        build(templates=['a {}.'])
    with pytest.raises(OSError, match='features cannot be stored .Read-only file system.'):
        regions(build(), *batch(5))


def test_what_the_pipeline_must_say(build):
    model, images = build(), torch.zeros(1, 3, 64, 64)
    _, sample = item(0)
    plain = BaseDataElement(metainfo={k: v for k, v in sample.metainfo.items() if k != 'fingerprint'})
    with pytest.raises(ValueError, match='PackRegions., fingerprint=True'):
        model.cached_regions(images, [plain])
    no_grid = BaseDataElement(metainfo={k: v for k, v in sample.metainfo.items() if k != 'grid'})
    with pytest.raises(ValueError, match='SampleGridRegions'):
        model.cached_regions(images, [no_grid])
    sample.set_metainfo({'grid': (1, 2)})
    with pytest.raises(ValueError, match=r'grid of \(1, 2\) was drawn, but rows and columns of 2 to 6'):
        model.cached_regions(images, [sample])


def test_boxes_that_were_moved_are_an_error(build):
    images, samples = batch(0, 1)
    samples[1].gt_regions.boxes[0, 0] += 0.01
    with pytest.raises(ValueError, match='boxes of 1.jpg are not those of its grid'):
        build().cached_regions(images, samples)


def test_features_that_are_not_finite_are_not_stored(build):
    model = build()
    model._run_teacher = lambda images, boxes: torch.full((len(images), boxes.shape[1], 24), float('nan'))
    with pytest.raises(ValueError, match='0.jpg: the teacher gives features that are not finite'):
        model.cached_regions(*batch(0))
    assert regions(build(), *batch(0))[1] == 0


def test_wider_grids_can_be_cached(checkpoints, tmp_path):
    options = {'teacher': checkpoints['teacher'], 'pixels': None}
    assert len(TeacherCache(tmp_path, **options, min_split=1).grids) == 24
    with pytest.raises(ValueError, match='min_split'):
        TeacherCache(tmp_path, **options, min_split=0)
    with pytest.raises(TypeError, match='min_spilt'):
        TeacherCache(tmp_path, **options, min_spilt=1)
