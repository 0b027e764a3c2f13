from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from densevlm_mm.datasets import SampleGridRegions, grid_boxes, grid_choices


def sample(transform: SampleGridRegions, epoch: int | None = 0, index: int = 0) -> torch.Tensor:
    results = {'ori_shape': (48, 64), 'img_shape': (32, 32), 'scale': 0.5, 'sample_idx': index}
    if epoch is not None:
        results['epoch'] = epoch
    results = transform(results)
    assert torch.equal(results['gt_regions'].boxes, results['ori_boxes'] * 0.5 / 32)
    return results['gt_regions'].boxes


def all_grids(min_split: int = 2) -> list[torch.Tensor]:
    return [grid_boxes(64, 48, rows, cols) / 64 for rows, cols in grid_choices(min_split, 6)]


def test_boxes_are_one_of_the_grids():
    grids = all_grids()
    for index in range(50):
        boxes = sample(SampleGridRegions(), index=index)
        assert any(torch.equal(boxes, grid) for grid in grids)


def test_every_grid_is_drawn_about_equally_often():
    transform = SampleGridRegions()
    counts = np.zeros(37, int)
    for index in range(1700):
        counts[len(sample(transform, index=index))] += 1
    expected = np.bincount([rows * cols for rows, cols in grid_choices()], minlength=37) * 100
    assert (counts[expected == 0] == 0).all()
    assert (abs(counts - expected) < 5 * np.sqrt(expected.clip(1))).all()


@given(st.integers(0, 2**31), st.integers(0, 1000), st.integers(0, 10**6))
def test_randomness_comes_from_seed_epoch_and_index_alone(seed, epoch, index):
    first = sample(SampleGridRegions(seed=seed, shuffle=True), epoch, index)
    np.random.seed(len(first))
    used = SampleGridRegions(seed=seed, shuffle=True)
    sample(used, epoch + 1, index)
    assert torch.equal(sample(used, epoch, index), first)


def test_epochs_indices_and_seeds_differ():
    transform = SampleGridRegions(shuffle=True)
    draws = [sample(transform, epoch, index) for epoch in range(3) for index in range(3)]
    draws += [sample(SampleGridRegions(seed=seed, shuffle=True)) for seed in (1, 2)]
    assert len({draw.numpy().tobytes() for draw in draws}) == len(draws)


def test_without_an_epoch_numpys_generator_decides():
    transform = SampleGridRegions(shuffle=True)
    np.random.seed(0)
    first = [sample(transform, None) for _ in range(4)]
    np.random.seed(0)
    again = [sample(transform, None) for _ in range(4)]
    assert all(map(torch.equal, first, again))
    assert len({draw.numpy().tobytes() for draw in first}) > 1


def test_shuffling_changes_the_order_only():
    plain, shuffled = sample(SampleGridRegions()), sample(SampleGridRegions(shuffle=True))
    assert not torch.equal(plain, shuffled)
    assert sorted(plain.tolist()) == sorted(shuffled.tolist())


def test_max_regions_keeps_random_cells_of_the_grid():
    plain = [sample(SampleGridRegions(), index=index).tolist() for index in range(30)]
    capped = [sample(SampleGridRegions(max_regions=5), index=index).tolist() for index in range(30)]
    for cells, kept in zip(plain, capped, strict=True):
        assert len(kept) == min(5, len(cells))
        assert kept == [cell for cell in cells if cell in kept]
    assert any(kept != cells[:5] for cells, kept in zip(plain, capped, strict=True))


@pytest.mark.parametrize('options', [{}, {'shuffle': True}, {'max_regions': 5}])
def test_grid_and_cells_say_which_boxes_they_are(options):
    transform = SampleGridRegions(**options)
    for index in range(20):
        results = {'ori_shape': (48, 64), 'img_shape': (32, 32), 'scale': 0.5, 'sample_idx': index, 'epoch': 0}
        results = transform(results)
        assert torch.equal(results['ori_boxes'], grid_boxes(64, 48, *results['grid'])[list(results['cells'])])


@pytest.mark.parametrize('options', [{'min_split': 0}, {'min_split': 4, 'max_split': 3}, {'max_regions': 0}])
def test_nonsense_is_an_error(options):
    with pytest.raises(ValueError):
        SampleGridRegions(**options)
