"""From the aggregated volume to logits at four times its resolution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .guided_layers import GuidedConv

_CHANNELS_PER_GROUP = 16
_CLASSES_AT_ONCE = 64  # 72 MiB per tensor at 96 x 96; all of a large vocabulary would be gigabytes


class UpBlock(nn.Module):
    """Double the resolution of every class's map and refine it beside guidance.

    Args:
        dim: Channels of a map.
        guidance_dim: Channels of the guidance.
        out_dim: Channels of the result, a multiple of 16.
    """

    def __init__(self, dim: int, guidance_dim: int, out_dim: int) -> None:
        super().__init__()
        groups = out_dim // _CHANNELS_PER_GROUP
        self.up = nn.ConvTranspose2d(dim, dim - guidance_dim, 2, stride=2)
        self.conv1 = GuidedConv(dim - guidance_dim, guidance_dim, out_dim)
        self.norm1 = nn.GroupNorm(groups, out_dim)
        self.conv2 = nn.Conv2d(out_dim, out_dim, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(groups, out_dim)
        self.act = nn.ReLU(inplace=True)

    def forward(self, maps: Tensor, guidance: Tensor) -> Tensor:
        """Maps ``(B * T, out_dim, 2h, 2w)`` from ``(B * T, dim, h, w)`` and guidance ``(B, guidance_dim, 2h, 2w)``."""
        maps = self.act(self.norm1(self.conv1(self.up(maps), guidance)))
        return self.act(self.norm2(self.conv2(maps)))


class Decoder(nn.Module):
    """Up-sampling, once per guidance map, and a logit per position.

    Args:
        dim: Channels of the volume.
        dims: Channels after each step, multiples of 16.
        guidance_dims: Channels of the guidance maps.
    """

    def __init__(self, dim: int, dims: Sequence[int], guidance_dims: Sequence[int]) -> None:
        super().__init__()
        self.ups = nn.ModuleList(
            UpBlock(*channels) for channels in zip((dim, *dims[:-1]), guidance_dims, dims, strict=True)
        )
        self.head = nn.Conv2d(dims[-1], 1, 3, padding=1)

    def forward(self, volume: Tensor, guidance: Sequence[Tensor]) -> Tensor:
        """Logits of every class by itself.

        Args:
            volume: ``(B, T, h, w, dim)``.
            guidance: ``(B, G_i, 2^i h, 2^i w)`` for i = 1, 2, ...

        Returns:
            ``(B, T, H, W)`` as fine as the last guidance.
        """
        parts = volume.split(_CLASSES_AT_ONCE, dim=1)
        return torch.cat([self._logits(part, guidance) for part in parts], dim=1)

    def _logits(self, volume: Tensor, guidance: Sequence[Tensor]) -> Tensor:
        maps = volume.flatten(0, 1).permute(0, 3, 1, 2)
        for up, guiding in zip(self.ups, guidance, strict=True):
            maps = up(maps, guiding)
        return self.head(maps)[:, 0].unflatten(0, volume.shape[:2])
