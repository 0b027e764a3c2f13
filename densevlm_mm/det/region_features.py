"""What the frozen VLM sees in a region, beside what the detector has learnt of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align

from densevlm_mm.vlm.region_pooling import pool_boxes

_REGIONS_AT_ONCE = 256  # through the head: 1000 of a ResNet-50x64 would be 3 GB of cells


class RegionFeatures(Protocol):
    """Features of any region of a batch of images."""

    def encode(self, rois: Tensor) -> Tensor:
        """Embeddings ``(N, C)``, L2-normalised, of RoIs ``(N, 5)``: index of the image, then xyxy in pixels."""


class DenseRegions:
    """Regions of a dense map: RoIAlign with one bin (F-ViT's way).

    Args:
        dense: ``(B, C, h, w)``, in the image-text space, L2-normalised per cell.
        cell: Pixels ``(rows, columns)`` per cell.
    """

    def __init__(self, dense: Tensor, cell: tuple[int, int]) -> None:
        self.dense = dense
        self.cell = cell

    def encode(self, rois: Tensor) -> Tensor:
        """See `RegionFeatures`."""
        (rows, columns), (height, width) = self.cell, self.dense.shape[-2:]
        boxes = rois[:, 1:].float() / rois.new_tensor([width * columns, height * rows] * 2, dtype=torch.float)
        pooled = boxes.new_zeros(len(rois), self.dense.shape[1])
        for index, dense in enumerate(self.dense):
            here = rois[:, 0] == index
            pooled[here] = pool_boxes(dense[None], boxes[here][None])[0]
        return F.normalize(pooled, dim=-1)


class PooledRegions:
    """Regions cut out of a convolutional tower's last map and pooled as whole images are (F-VLM's way).

    Args:
        features: ``(B, W, h, w)``, what leaves the last stage.
        cell: Pixels ``(rows, columns)`` per cell; both equal.
        pool: The tower's pooling and projection, ``(n, W, *size)`` -> ``(n, C)``.
        size: Cells ``(rows, columns)`` of an image of the tower's native size.
    """

    def __init__(
        self, features: Tensor, cell: tuple[int, int], pool: Callable[[Tensor], Tensor], size: tuple[int, int]
    ) -> None:
        self.features = features
        self.cell = cell
        self.pool = pool
        self.size = size

    def encode(self, rois: Tensor) -> Tensor:
        """See `RegionFeatures`."""
        scale = 1 / self.cell[0]
        embeddings = []
        for chunk in rois.to(self.features.dtype).split(_REGIONS_AT_ONCE):
            crops = roi_align(self.features, chunk, self.size, scale, aligned=True)
            embeddings.append(self.pool(crops).float())
        return F.normalize(torch.cat(embeddings), dim=-1)


class LevelsWithRegions(tuple):
    """Levels of a feature pyramid, as MMDetection's heads take them, and the VLM's features of any region.

    Attributes:
        regions: The VLM's features.
        objectness: ``(N,)`` scores of the proposals that the head is about to classify, or None.
    """

    regions: RegionFeatures
    objectness: Tensor | None

    def __new__(
        cls, levels: Sequence[Tensor], regions: RegionFeatures, objectness: Tensor | None = None
    ) -> LevelsWithRegions:
        self = super().__new__(cls, levels)
        self.regions = regions
        self.objectness = objectness
        return self

    def with_objectness(self, objectness: Tensor) -> LevelsWithRegions:
        """The same features for proposals of these scores ``(N,)``."""
        return LevelsWithRegions(self, self.regions, objectness)
