"""Features of boxes and masks, image by image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align


def valid_boxes(boxes: Tensor) -> list[Tensor]:
    """Boxes ``(N_i, 4)`` of each image out of ``(B, M, 5)``, whose last column flags the real ones.

    How many there are decides the shapes, so the host waits for the device at each image.
    """
    return [per_image[per_image[:, 4] > 0.5, :4] for per_image in boxes]


def box_features(dense: Tensor, boxes: Sequence[Tensor]) -> Tensor:
    """1x1 RoIAlign.

    Args:
        dense: ``(B, C, h, w)``.
        boxes: Per image ``(N_i, 4)``, xyxy in 0..1.

    Returns:
        ``(sum N_i, C)``, fp32, not normalised.
    """
    height, width = dense.shape[-2:]
    scaled = [b * b.new_tensor([width, height, width, height]) for b in boxes]
    return roi_align(dense.float(), scaled, (1, 1), 1.0, -1, True)[..., 0, 0]


def mask_features(dense: Tensor, masks: Sequence[Tensor]) -> Tensor:
    """L2-normalised means over masks, with the dense features repeated for each of them.

    Args:
        dense: ``(B, C, h, w)``.
        masks: Per image ``(N_i, h, w)``.

    Returns:
        ``(sum N_i, C)``, fp32.
    """
    tokens = dense.float().flatten(2).transpose(1, 2)
    counts = torch.tensor([len(m) for m in masks], device=dense.device)
    weights = torch.cat(list(masks)).flatten(1)[..., None]
    sums = (tokens.repeat_interleave(counts, dim=0) * weights).sum(1)
    return F.normalize(sums / (weights.sum(1) + 1e-12), dim=-1)
