from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import roi_align

from densevlm_mm.vlm.region_pooling import (
    axis_weights,
    box_weights,
    mask_weights,
    pad_regions,
    pool,
    pool_boxes,
    pool_masks,
)

grids = st.tuples(st.integers(1, 12), st.integers(1, 12))
# on and off cell borders, up to half an image outside
edges = st.one_of(st.integers(-8, 24).map(lambda i: i / 16), st.floats(-0.5, 1.5, width=32))
intervals = st.tuples(edges, edges).map(sorted)


@st.composite
def box_lists(draw, max_size: int = 6) -> Tensor:
    """``(N, 4)`` boxes, their corners in order; some are empty, leave the image or lie outside."""
    pairs = draw(st.lists(st.tuples(intervals, intervals), min_size=1, max_size=max_size))
    return torch.tensor([[x[0], y[0], x[1], y[1]] for x, y in pairs], dtype=torch.float32)


def torchvision_pool(dense: Tensor, boxes: Tensor) -> Tensor:
    """The operator of the reference: dense ``(1, C, h, w)``, boxes ``(N, 4)`` in 0..1 -> ``(N, C)``."""
    height, width = dense.shape[-2:]
    cells = boxes * boxes.new_tensor([width, height, width, height])
    return roi_align(dense, [cells], (1, 1), 1.0, -1, True)[..., 0, 0]


@given(grids, box_lists())
def test_boxes_are_pooled_as_by_roi_align(grid, boxes):
    dense = torch.randn(1, 3, *grid, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(pool_boxes(dense, boxes[None])[0], torchvision_pool(dense, boxes), rtol=1e-5, atol=5e-6)


@given(grids, st.lists(st.lists(st.floats(-40, 41, width=16), min_size=4, max_size=4), min_size=1, max_size=4))
def test_boxes_far_beyond_the_image_too(grid, corners):
    corners = torch.tensor(corners).view(-1, 2, 2).sort(1).values.flatten(1)
    dense = torch.randn(1, 3, *grid, generator=torch.Generator().manual_seed(0))
    theirs = torchvision_pool(dense, corners)
    # their boxes have hundreds of cells a side, of whose samples each feature is a mean
    torch.testing.assert_close(pool_boxes(dense, corners[None])[0], theirs, rtol=1e-4, atol=2e-5)


@given(grids, box_lists())
def test_gradients_are_those_of_roi_align(grid, boxes):
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(1, 3, *grid, generator=generator, requires_grad=True)
    upstream = torch.randn(len(boxes), 3, generator=generator)
    (ours,) = torch.autograd.grad((pool_boxes(dense, boxes[None])[0] * upstream).sum(), dense)
    (theirs,) = torch.autograd.grad((torchvision_pool(dense, boxes) * upstream).sum(), dense)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=5e-6)


@given(grids, intervals, intervals)
def test_an_inverted_box_pools_nothing(grid, x, y):
    assume(x[0] < x[1])
    boxes = torch.tensor([[x[1], y[0], x[0], y[1]], [y[0], x[1], y[1], x[0]]])
    assert not box_weights(boxes, grid).any()


@given(st.integers(1, 40), st.floats(0, 1, width=32), st.floats(0, 1, width=32))
def test_weights_of_a_box_inside_sum_to_one(size, low, high):
    assume(high - low > 1e-3)
    weights = axis_weights(torch.tensor(low) * size, torch.tensor(high) * size, size)
    assert weights.min() >= 0
    assert weights.sum().item() == pytest.approx(1, abs=1e-5)


@given(st.integers(1, 12), intervals)
def test_weights_never_sum_to_more_than_one(size, interval):
    low, high = (torch.tensor(edge) * size for edge in interval)
    assert axis_weights(low, high, size).sum() <= 1 + 1e-5


def test_samples_more_than_a_cell_outside_count_as_zeros():
    """A box of six cells with two of them outside a row of four: one of its samples lies beyond the border cell."""
    weights = axis_weights(torch.tensor(-2.0), torch.tensor(4.0), 4)
    torch.testing.assert_close(weights, torch.tensor([2.0, 1, 1, 1]) / 6)


@given(st.integers(1, 40), st.data())
def test_a_box_on_cell_borders_weighs_its_cells_alike(size, data):
    low = data.draw(st.integers(0, size - 1))
    high = data.draw(st.integers(low + 1, size))
    expected = torch.zeros(size)
    expected[low:high] = 1 / torch.tensor(float(high - low))
    assert torch.equal(axis_weights(torch.tensor(float(low)), torch.tensor(float(high)), size), expected)


@given(st.integers(0, 4), st.integers(0, 4), st.data())
def test_a_box_on_cell_borders_is_its_mask(rows, columns, data):
    """Both are the plain mean over the cells, wherever the edges fall on cell borders in fp32.

    Grids of powers of two keep them there. On others rounding may push a box beyond a whole number of cells, which
    costs it one more sample; see the next test.
    """
    height, width = 2**rows, 2**columns
    y1, x1 = (data.draw(st.integers(0, size - 1)) for size in (height, width))
    y2, x2 = (data.draw(st.integers(a + 1, size)) for a, size in ((y1, height), (x1, width)))
    mask = torch.zeros(1, 1, height, width)
    mask[..., y1:y2, x1:x2] = 1
    box = torch.tensor([[[x1 / width, y1 / height, x2 / width, y2 / height]]])
    dense = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(pool_boxes(dense, box), pool_masks(dense, mask, normalize=False), rtol=1e-5, atol=1e-6)


def weights_of_samples(low: float, high: float, size: int, count: int) -> Tensor:
    """Mean bilinear weights of ``count`` equidistant samples, one by one."""
    weights = torch.zeros(size)
    for k in range(count):
        position = min(max(low - 0.5 + (k + 0.5) * (high - low) / count, 0), size - 1)
        cell = min(math.floor(position), size - 1)
        weights[cell] += (1 - (position - cell)) / count
        if cell + 1 < size:
            weights[cell + 1] += (position - cell) / count
    return weights


def test_rounding_decides_how_many_samples_a_grid_box_gets():
    """Four columns of an image 500 px wide, scaled to 512 px as the reference does: 8, 8, 9 and 8 samples."""
    borders = torch.linspace(0, 1, 5) * 500 * (512 / 500) / 512
    boxes = torch.stack([borders[:-1], torch.zeros(4), borders[1:], torch.ones(4)], 1)
    weights = box_weights(boxes, (1, 32))[:, 0]
    for i, (row, count) in enumerate(zip(weights, (8, 8, 9, 8), strict=True)):
        torch.testing.assert_close(row, weights_of_samples(8 * i, 8 * i + 8, 32, count), rtol=0, atol=1e-5)
    dense = torch.randn(1, 3, 1, 32)
    torch.testing.assert_close(pool_boxes(dense, boxes[None])[0], torchvision_pool(dense, boxes), rtol=0, atol=1e-6)


@pytest.mark.parametrize('dtype', [torch.float16, torch.float64])
def test_boxes_of_any_float_dtype(dtype):
    boxes = torch.tensor([[[0.25, 0.5, 0.75, 1.0]]])
    dense = torch.randn(1, 3, 8, 6)
    assert torch.equal(pool_boxes(dense, boxes.to(dtype)), pool_boxes(dense, boxes))


@pytest.mark.parametrize('dtype', [torch.bool, torch.uint8, torch.int64, torch.float16, torch.float64])
def test_masks_of_any_dtype(dtype):
    masks = (torch.rand(1, 4, 5, 6) > 0.5).float()
    dense = torch.randn(1, 3, 5, 6)
    assert torch.equal(pool_masks(dense, masks.to(dtype)), pool_masks(dense, masks))


def test_masks_average_the_features_under_them():
    dense = torch.arange(8.0).reshape(1, 2, 2, 2)
    mask = torch.tensor([[[[1, 0], [0, 1]]]])
    expected = torch.tensor([[[1.5, 5.5]]])
    torch.testing.assert_close(pool_masks(dense, mask, normalize=False), expected)
    torch.testing.assert_close(pool_masks(dense, mask), F.normalize(expected, dim=-1))


@given(st.floats(0.125, 64, width=32))
def test_only_the_shape_of_a_mask_matters(factor):
    mask = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(mask_weights(factor * mask), mask_weights(mask))


def test_an_empty_mask_gives_a_zero_feature():
    assert not pool_masks(torch.randn(1, 3, 4, 4), torch.zeros(1, 2, 4, 4)).any()


def test_a_whole_image_is_its_mean():
    dense = torch.randn(2, 3, 5, 7)
    mean = dense.mean((-2, -1))[:, None]
    whole = torch.tensor([0.0, 0, 1, 1]).expand(2, 1, 4)
    torch.testing.assert_close(pool_boxes(dense, whole), mean)
    torch.testing.assert_close(pool_masks(dense, torch.ones(2, 1, 5, 7), normalize=False), mean)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_pooling_is_in_single_precision(dtype):
    dense, masks = torch.randn(1, 3, 4, 4).to(dtype), torch.rand(1, 2, 4, 4)
    expected = pool_masks(dense.float(), masks)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        pooled = pool_masks(dense, masks)
    assert pooled.dtype == torch.float32
    assert torch.equal(pooled, expected)


def test_masks_of_another_grid_are_refused():
    with pytest.raises(ValueError, match=r'\(8, 8\) grid but the dense features on a \(4, 6\) grid; make masks of'):
        pool_masks(torch.randn(1, 3, 4, 6), torch.ones(1, 1, 8, 8))


@pytest.mark.parametrize(('images', 'lists'), [(1, 2), (2, 1), (3, 2)])
def test_regions_of_another_number_of_images_are_refused(images, lists):
    with pytest.raises(ValueError, match=f'regions of {lists} images but dense features of {images}'):
        pool(torch.randn(images, 3, 4, 4), torch.ones(lists, 5, 4, 4))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=4), st.sampled_from([(4,), (2, 3)]))
def test_padding_keeps_every_region_and_its_order(counts, shape):
    regions = [torch.rand(count, *shape) for count in counts]
    padded, valid = pad_regions(regions)
    assert padded.shape == (len(counts), max(counts), *shape)
    assert valid.sum(1).tolist() == counts
    assert torch.equal(padded[valid], torch.cat(regions))
    assert not padded[~valid].any()
