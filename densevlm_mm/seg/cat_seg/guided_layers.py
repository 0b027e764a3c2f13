"""Layers on features beside guidance that all their classes, or all their positions, share."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class GuidedLinear(nn.Linear):
    """Linear layer of features and guidance side by side, without laying them side by side.

    Guidance that is the same along an axis has length 1 there, and its part of the product is computed once.

    Args:
        dim: Channels of the features.
        guidance_dim: Channels of the guidance.
    """

    def __init__(self, dim: int, guidance_dim: int) -> None:
        super().__init__(dim + guidance_dim, dim)
        self.dims = (dim, guidance_dim)

    def forward(self, features: Tensor, guidance: Tensor) -> Tensor:
        """Features ``(..., dim)`` from features ``(..., dim)`` and guidance ``(..., guidance_dim)``, broadcast."""
        own, guiding = self.weight.split(self.dims, dim=1)
        return F.linear(features, own, self.bias) + F.linear(guidance, guiding)


class GuidedConv(nn.Conv2d):
    """3x3 convolution, without bias, of the maps of all classes beside a guidance map that the classes share.

    Args:
        dim: Channels of a map.
        guidance_dim: Channels of the guidance.
        out_dim: Channels of the result.
    """

    def __init__(self, dim: int, guidance_dim: int, out_dim: int) -> None:
        super().__init__(dim + guidance_dim, out_dim, 3, padding=1, bias=False)
        self.dims = (dim, guidance_dim)

    def forward(self, maps: Tensor, guidance: Tensor) -> Tensor:
        """Maps ``(B * T, out_dim, h, w)`` from maps ``(B * T, dim, h, w)`` and guidance ``(B, guidance_dim, h, w)``."""
        own, guiding = self.weight.split(self.dims, dim=1)
        shared = F.conv2d(guidance, guiding, padding=1)
        maps = F.conv2d(maps, own, padding=1).unflatten(0, (len(guidance), -1))
        return (maps + shared[:, None]).flatten(0, 1)
