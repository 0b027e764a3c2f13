from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from densevlm_mm.datasets.grids import grid_boxes, grid_choices, normalize_boxes

sides = st.integers(10, 6000)
splits = st.integers(1, 12)


@pytest.mark.parity
def test_choices_are_those_of_the_reference(parity):
    assert grid_choices() == [tuple(choice) for choice in parity['choices'].tolist()]


def test_choices_of_clipself():
    choices = grid_choices(1, 6)
    assert len(choices) == 24
    assert choices[:3] == [(1, 1), (1, 2), (2, 1)]


@given(st.integers(1, 12), st.integers(0, 12))
def test_choices_stay_in_range_and_are_never_empty(min_split, extra):
    choices = grid_choices(min_split, min_split + extra)
    assert len(set(choices)) == len(choices) >= extra + 1
    assert all(min_split <= side <= min_split + extra for choice in choices for side in choice)
    assert all(cols <= 2 * rows <= 4 * cols for rows, cols in choices)


@pytest.mark.parametrize('splits', [(0, 6), (3, 2)])
def test_choices_refuse_nonsense(splits):
    with pytest.raises(ValueError, match='min_split'):
        grid_choices(*splits)


@pytest.mark.parity
def test_boxes_are_those_of_the_reference_to_the_bit(parity):
    keys = [key for key in parity if key.startswith('boxes_')]
    assert len(keys) == 25
    for key in keys:
        _, image, rows, cols = key.split('_')
        width, height = map(int, image.split('x'))
        boxes = grid_boxes(width, height, int(rows), int(cols))
        boxes = normalize_boxes(boxes, scale=512 / max(width, height), size=512)
        assert boxes.dtype == torch.float32
        np.testing.assert_array_equal(boxes.numpy(), parity[key])


@given(sides, sides, splits, splits)
def test_boxes_tile_the_image(width, height, rows, cols):
    boxes = grid_boxes(width, height, rows, cols).view(rows, cols, 4)
    # Neighbours share their edge to the bit, so nothing is left out or counted twice.
    assert torch.equal(boxes[:, 1:, 0], boxes[:, :-1, 2])
    assert torch.equal(boxes[1:, :, 1], boxes[:-1, :, 3])
    assert (boxes[:, 0, 0] == 0).all() and (boxes[0, :, 1] == 0).all()
    torch.testing.assert_close(boxes[:, -1, 2], torch.full((rows,), float(width)))
    torch.testing.assert_close(boxes[-1, :, 3], torch.full((cols,), float(height)))
    assert (boxes[..., 2:] > boxes[..., :2]).all()
    assert boxes.min() == 0 and boxes.max() == max(width, height)


def test_boxes_are_scaled_in_float32_then_divided():
    """Where the size is no power of two, another order of the operations gives other last bits."""
    pixels = np.linspace(0, 640, 400, dtype=np.float32).reshape(-1, 4)
    boxes = normalize_boxes(torch.from_numpy(pixels), scale=560 / 640, size=560).numpy()
    np.testing.assert_array_equal(boxes, pixels * np.float32(560 / 640) / np.float32(560))
    assert not np.array_equal(boxes, pixels * np.float32(560 / 640 / 560))


def test_normalized_boxes_are_shares_of_the_padded_square():
    boxes = normalize_boxes(torch.tensor([[0.0, 0.0, 640.0, 480.0]]), scale=512 / 640, size=512)
    torch.testing.assert_close(boxes, torch.tensor([[0.0, 0.0, 1.0, 0.75]]))
