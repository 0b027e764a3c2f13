"""Pixels normalised for one model, handed to another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

Statistics = tuple[Sequence[float], Sequence[float]]

#: Mean and standard deviation by which bytes 0..255 are "normalised", where pixels lie in 0..1.
BYTES: Statistics = ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))


class Renormalize(nn.Module):
    """Undo one normalisation of pixels and do another, in one step; nothing where both are the same.

    Args:
        source: Mean and standard deviation per channel, for pixels in 0..1, by which images come in.
        target: The same by which they go out.
    """

    def __init__(self, source: Statistics, target: Statistics) -> None:
        super().__init__()
        values = [torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in (*source, *target)]
        mean, std, new_mean, new_std = values
        self.is_identity = bool(torch.equal(mean, new_mean) and torch.equal(std, new_std))
        self.register_buffer('factor', (std / new_std).float(), persistent=False)
        self.register_buffer('offset', ((mean - new_mean) / new_std).float(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images ``(B, 3, H, W)``, any real dtype where the normalisations differ."""
        return images if self.is_identity else images * self.factor + self.offset
