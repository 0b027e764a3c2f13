"""Grids of boxes that tile an image: the regions that distillation aligns (CLIPSelf, DenseVLM)."""

from __future__ import annotations

import torch
from torch import Tensor


def grid_choices(min_split: int = 2, max_split: int = 6) -> list[tuple[int, int]]:
    """Grids ``(rows, cols)`` a training image may be cut into.

    Rows and columns both lie in ``min_split..max_split``. To keep the cells from becoming slivers, there are
    at most twice as many columns as rows, and more than half as many, rounded up (with ``min_split=1``: at
    least).

    >>> grid_choices(2, 3)
    [(2, 2), (2, 3), (3, 3)]

    Args:
        min_split: Fewest rows and columns. DenseVLM uses 2 (17 grids up to 6 x 6), CLIPSelf 1 (24 grids).
        max_split: Most rows and columns.

    Returns:
        The grids, ordered by rows, then columns.

    Raises:
        ValueError: ``1 <= min_split <= max_split`` does not hold.
    """
    if not 1 <= min_split <= max_split:
        raise ValueError(f'1 <= min_split <= max_split must hold, got {min_split=} and {max_split=}')
    return [
        (rows, cols)
        for rows in range(min_split, max_split + 1)
        for cols in range(max(min_split, (rows + 1) // 2 + (min_split > 1)), min(2 * rows, max_split) + 1)
    ]


def normalize_boxes(boxes: Tensor, *, scale: float, size: int) -> Tensor:
    """Boxes in pixels of the original image, as shares of the padded square input.

    The order of the two float32 operations is part of the method: how many samples RoIAlign takes from a box
    depends on the last bit of its corners.

    Args:
        boxes: ``(N, 4)`` float32 xyxy, px of the original image.
        scale: Resize factor, ``size / max(height, width)``.
        size: Side of the padded input in px.

    Returns:
        ``(N, 4)`` float32 xyxy in 0..1.
    """
    return boxes * scale / size


def grid_boxes(width: int, height: int, rows: int, cols: int) -> Tensor:
    """Boxes of a ``rows`` x ``cols`` grid over an image.

    >>> grid_boxes(40, 20, 1, 2).tolist()
    [[0.0, 0.0, 20.0, 20.0], [20.0, 0.0, 40.0, 20.0]]

    Args:
        width: Width of the image in px.
        height: Height of the image in px.
        rows: Cells from top to bottom.
        cols: Cells from left to right.

    Returns:
        ``(rows * cols, 4)`` float32 xyxy in px, row by row.
    """
    # torch.linspace rounds differently from NumPy's; the published boxes are torch's.
    x = torch.linspace(0, 1, cols + 1) * width
    y = torch.linspace(0, 1, rows + 1) * height
    top, left = torch.meshgrid(y[:-1], x[:-1], indexing='ij')
    bottom, right = torch.meshgrid(y[1:], x[1:], indexing='ij')
    return torch.stack([left, top, right, bottom], dim=-1).reshape(-1, 4)
