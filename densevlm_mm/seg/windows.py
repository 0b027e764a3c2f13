"""Windows that slide over an image, and the mean of what was found in them.

Enlarging the maps of windows bilinearly, averaging them where windows overlap and resizing the mean bilinearly: each
step is linear and treats rows and columns apart. So two small matrices, one per side of the image, say all of it, and
any part of the result can be had without the rest: see `window_weights` and `class_scores.label_map`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def window_spans(length: int, window: int, stride: int) -> list[tuple[int, int]]:
    """Windows along one side of an image.

    Args:
        length: The side in px.
        window: Side of a window in px; a shorter image is one window of its own length.
        stride: Px from one to the next; the last is moved back until it ends with the image.

    Returns:
        ``(start, stop)`` per window, all of the same length, which together cover the side.

    Raises:
        ValueError: If something is not positive, or the stride leaves gaps between the windows.
    """
    if length < 1:
        raise ValueError(f'an image of {length} px has no windows')
    if not 1 <= stride <= window:
        raise ValueError(f'windows of {window} px every {stride} px: give a stride of 1 px up to the window')
    side = min(window, length)
    return [(start, start + side) for start in [*range(0, length - side, stride), length - side]]


def sliding_windows(size: tuple[int, int], window: int, stride: int) -> list[tuple[int, int, int, int]]:
    """Square windows that cover an image, row by row.

    Args:
        size: ``(H, W)`` of the image in px.
        window: See `window_spans`.
        stride: See `window_spans`.

    Returns:
        ``(y1, x1, y2, x2)`` per window, in px.

    Raises:
        ValueError: See `window_spans`.
    """
    rows, columns = (window_spans(side, window, stride) for side in size)
    return [(y1, x1, y2, x2) for y1, y2 in rows for x1, x2 in columns]


def average_windows(
    maps: Sequence[Tensor] | Tensor, windows: Sequence[tuple[int, int, int, int]], size: tuple[int, int]
) -> Tensor:
    """Mean, at every pixel, of the windows that it lies in.

    Args:
        maps: ``(..., h, w)`` per window, in its pixels.
        windows: Those of `sliding_windows`.
        size: ``(H, W)`` of the image in px.

    Returns:
        ``(..., H, W)``.
    """
    total = maps[0].new_zeros(*maps[0].shape[:-2], *size)
    count = maps[0].new_zeros(size)
    for found, (y1, x1, y2, x2) in zip(maps, windows, strict=True):
        total[..., y1:y2, x1:x2] += found
        count[y1:y2, x1:x2] += 1
    return total / count


def resize_weights(source: int, target: int) -> Tensor:
    """Weights ``(target, source)`` of a bilinear resize along one side: `F.interpolate` with corners not aligned."""
    return _resize_rows(torch.eye(source), target)


def num_cells(spans: Sequence[tuple[int, int]], cell: int) -> int:
    """Cells of ``cell`` px along a window, the last of which may reach beyond it."""
    start, stop = spans[0]
    return -(-(stop - start) // cell)


def window_weights(spans: Sequence[tuple[int, int]], cell: int, target: int) -> Tensor:
    """Weights that make the pixels along one side of the result from the cells of all windows.

    The cells of a window are enlarged bilinearly to its pixels, windows are averaged where they overlap, and the image
    is resized bilinearly.

    Args:
        spans: Windows along this side, see `window_spans`.
        cell: Px per cell. The last cell of a window may reach beyond it, into its padding.
        target: Px of the result along this side.

    Returns:
        ``(target, n * m)`` for n windows of m cells each, rows summing to 1.
    """
    cells, length = num_cells(spans, cell), spans[-1][1]
    enlarge = resize_weights(cells, cells * cell)
    weights = torch.zeros(length, len(spans), cells)
    count = torch.zeros(length, 1)
    for index, (start, stop) in enumerate(spans):
        weights[start:stop, index] = enlarge[: stop - start]  # without the padding
        count[start:stop] += 1
    return _resize_rows(weights.flatten(1) / count, target)


def _resize_rows(weights: Tensor, target: int) -> Tensor:
    """Rows ``(n, m)`` resized bilinearly to ``(target, m)``."""
    return F.interpolate(weights.T[None], size=target, mode='linear', align_corners=False)[0].T
