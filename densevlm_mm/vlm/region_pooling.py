"""Pooling of dense features over boxes and masks, as plain matrix products.

RoIAlign with a 1x1 output is separable: the bilinear samples of a box form a regular lattice, so the pooled feature is
``sum_y sum_x w_y[y] w_x[x] F[y, x]``. Boxes thus become soft masks over the token grid, and boxes and masks share one
batched matrix product with a deterministic backward.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

# Denominator guard of masked means; an empty mask then gives a zero feature, hence zero logits.
MASK_EPS = 1e-12


def axis_weights(low: Tensor, high: Tensor, size: int) -> Tensor:
    """Mean bilinear weight that RoIAlign (``aligned=True``, adaptive sampling, one bin) gives each cell of one axis.

    Args:
        low: Lower box edges in cells, any shape ``(...)``, fp32.
        high: Upper box edges in cells, same shape.
        size: Number of cells along the axis.

    Returns:
        Weights ``(..., size)``. They sum to 1 for a box inside the grid, to less for one that leaves it by more than
        a cell (samples outside count as zeros), and to 0 for an empty or inverted box.
    """
    start = low - 0.5
    length = (high - 0.5) - start  # this order of operations decides, by fp32 rounding, how many samples a box gets
    count = length.ceil().clamp(min=0)
    # A box may reach beyond the grid. Samples out there are zeros, but count in the mean; of the others, less than a
    # cell apart, there are at most size + 3. So the shapes follow from the grid alone, and no device has to be asked.
    skipped = ((-1 - start) * count / length.clamp(min=1) - 1.5).floor().clamp(min=0)
    steps = skipped[..., None] + torch.arange(size + 5, device=low.device, dtype=low.dtype)
    sample = start[..., None] + (steps + 0.5) * length[..., None] / count[..., None].clamp(min=1)
    used = (steps < count[..., None]) & (sample >= -1) & (sample <= size)
    sample = sample.clamp(0, size - 1)
    cells = torch.arange(size, device=low.device, dtype=low.dtype)
    hat = (1 - (sample[..., None] - cells).abs()).clamp(min=0) * used[..., None]
    return hat.sum(-2) / count[..., None].clamp(min=1)


def box_weights(boxes: Tensor, grid: tuple[int, int]) -> Tensor:
    """Pooling weights of boxes over a token grid.

    Args:
        boxes: ``(..., 4)`` xyxy in 0..1 of the image.
        grid: Number of token rows and columns ``(h, w)``.

    Returns:
        Weights ``(..., h, w)``, fp32; pooling with them equals torchvision's ``roi_align(output_size=1,
        sampling_ratio=-1, aligned=True)`` to fp32 rounding.
    """
    height, width = grid
    boxes = boxes.float()
    x1, y1, x2, y2 = (boxes * boxes.new_tensor([width, height, width, height])).unbind(-1)
    return axis_weights(y1, y2, height)[..., :, None] * axis_weights(x1, x2, width)[..., None, :]


def mask_weights(masks: Tensor) -> Tensor:
    """Weights ``(..., h, w)`` that average over masks ``(..., h, w)`` of any non-negative dtype; all 0 if empty."""
    masks = masks.float()
    return masks / (masks.sum((-2, -1), keepdim=True) + MASK_EPS)


def pool(dense: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of dense features.

    Args:
        dense: ``(B, C, h, w)``.
        weights: ``(B, N, h, w)``.

    Returns:
        ``(B, N, C)``, fp32.

    Raises:
        ValueError: If the number of images or the grids differ.
    """
    if len(dense) != len(weights):
        raise ValueError(f'regions of {len(weights)} images but dense features of {len(dense)}')
    if dense.shape[-2:] != weights.shape[-2:]:
        raise ValueError(
            f'regions live on a {tuple(weights.shape[-2:])} grid but the dense features on a '
            f'{tuple(dense.shape[-2:])} grid; make masks of exactly the token grid (image size // patch size)'
        )
    with torch.autocast(dense.device.type, enabled=False):
        return weights.flatten(2) @ dense.float().flatten(2).transpose(1, 2)


def pool_boxes(dense: Tensor, boxes: Tensor) -> Tensor:
    """Box features ``(B, N, C)`` of ``dense`` (B, C, h, w) for ``boxes`` (B, N, 4), xyxy in 0..1; not normalised."""
    return pool(dense, box_weights(boxes, dense.shape[-2:]))


def pool_masks(dense: Tensor, masks: Tensor, normalize: bool = True) -> Tensor:
    """Mask features ``(B, N, C)`` of ``dense`` (B, C, h, w) for ``masks`` (B, N, h, w), L2-normalised by default."""
    pooled = pool(dense, mask_weights(masks))
    return F.normalize(pooled, dim=-1) if normalize else pooled


def pad_regions(regions: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Stack per-image regions into one tensor.

    Args:
        regions: One ``(N_i, ...)`` tensor per image.

    Returns:
        ``(B, max N_i, ...)`` padded with zeros, and ``(B, max N_i)`` flags of the real rows.
    """
    counts = torch.tensor([len(r) for r in regions])
    padded = pad_sequence(list(regions), batch_first=True)
    valid = torch.arange(padded.shape[1]) < counts[:, None]
    return padded, valid.to(padded.device)
