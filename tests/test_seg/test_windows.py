"""Windows cover the image; the weights of windows and resizes against images enlarged and added one by one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from densevlm_mm.seg import average_windows, sliding_windows
from densevlm_mm.seg.windows import num_cells, resize_weights, window_spans, window_weights

lengths = st.integers(1, 60)


@st.composite
def window_and_stride(draw) -> tuple[int, int]:
    window = draw(st.integers(1, 30))
    return window, draw(st.integers(1, window))


@pytest.mark.parametrize(('size', 'window', 'stride', 'count'), [
    ((640, 640), 384, 256, 4),  # CAT-Seg
    ((336, 448), 224, 112, 6),  # SCLIP
    ((448, 597), 448, 224, 2),  # ClearCLIP
    ((448, 597), 336, 112, 8),  # DeCLIP
    ((560, 1120), 336, 112, 24),  # DeCLIP on Cityscapes
    ((100, 80), 336, 112, 1),
    ((336, 337), 336, 112, 2),
])  # fmt: skip
def test_numbers_of_windows(size, window, stride, count):
    assert len(sliding_windows(size, window, stride)) == count


def test_rows_come_first_and_the_last_window_ends_with_the_image():
    assert sliding_windows((5, 8), 4, 3) == [(0, 0, 4, 4), (0, 3, 4, 7), (0, 4, 4, 8),
                                             (1, 0, 5, 4), (1, 3, 5, 7), (1, 4, 5, 8)]  # fmt: skip


def test_an_image_smaller_than_the_window_is_one_of_its_own_size():
    assert sliding_windows((3, 5), 8, 4) == [(0, 0, 3, 5)]
    assert sliding_windows((3, 9), 8, 4) == [(0, 0, 3, 8), (0, 1, 3, 9)]


@given(length=lengths, sizes=window_and_stride())
def test_windows_cover_a_side(length, sizes):
    window, stride = sizes
    spans = window_spans(length, window, stride)
    assert {stop - start for start, stop in spans} == {min(window, length)}
    assert spans[0][0] == 0
    assert spans[-1][1] == length
    starts = [start for start, _ in spans]
    assert all(0 < b - a <= stride for a, b in zip(starts, starts[1:], strict=False))


@pytest.mark.parametrize(('length', 'window', 'stride', 'message'), [
    (10, 4, 5, 'windows of 4 px every 5 px'),
    (10, 4, 0, 'windows of 4 px every 0 px'),
    (10, 0, 0, 'windows of 0 px'),
    (0, 4, 2, 'an image of 0 px'),
])  # fmt: skip
def test_windows_with_gaps_are_refused(length, window, stride, message):
    with pytest.raises(ValueError, match=message):
        window_spans(length, window, stride)


def test_average_counts_every_window_once():
    windows = sliding_windows((4, 6), 4, 2)
    found = average_windows([torch.full((2, 4, 4), 1.0), torch.full((2, 4, 4), 3.0)], windows, (4, 6))
    assert found[:, 0].tolist() == [[1, 1, 2, 2, 3, 3]] * 2


@given(height=lengths, width=lengths, sizes=window_and_stride())
def test_average_of_an_images_own_windows_is_the_image(height, width, sizes):
    image = torch.rand(2, height, width)
    windows = sliding_windows((height, width), *sizes)
    crops = [image[:, y1:y2, x1:x2] for y1, x1, y2, x2 in windows]
    torch.testing.assert_close(average_windows(crops, windows, (height, width)), image)


@given(source=st.integers(1, 30), target=lengths)
def test_resize_weights_are_those_of_interpolate(source, target):
    values = torch.rand(1, 1, source, 3)
    expected = F.interpolate(values, size=(target, 3), mode='bilinear', align_corners=False)
    torch.testing.assert_close(resize_weights(source, target) @ values[0, 0], expected[0, 0])


@settings(max_examples=60)
@given(length=lengths, target=lengths, cell=st.integers(1, 9), sizes=window_and_stride())
def test_window_weights_say_what_is_done_step_by_step(length, target, cell, sizes):
    spans = window_spans(length, *sizes)
    cells = num_cells(spans, cell)
    maps = torch.rand(len(spans), cells)
    total, count = torch.zeros(length), torch.zeros(length)
    for found, (start, stop) in zip(maps, spans, strict=True):
        enlarged = F.interpolate(found[None, None], size=cells * cell, mode='linear', align_corners=False)[0, 0]
        total[start:stop] += enlarged[: stop - start]
        count[start:stop] += 1
    expected = F.interpolate((total / count)[None, None], size=target, mode='linear', align_corners=False)[0, 0]
    weights = window_weights(spans, cell, target)
    torch.testing.assert_close(weights @ maps.flatten(), expected)
    torch.testing.assert_close(weights.sum(1), torch.ones(target))  # a constant stays what it is
