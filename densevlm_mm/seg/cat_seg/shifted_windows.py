"""Windows of a token grid, possibly shifted, for any grid size."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class ShiftedWindows:
    """A partition of a grid into windows (Swin, Liu et al., arXiv:2103.14030).

    A grid that the windows do not divide is padded at the bottom and right; see `mask`.

    Attributes:
        grid: ``(h, w)`` of the tokens.
        size: ``(h, w)`` of a window.
        shift: Cells by which the windows are moved down and right, around the edges.
    """

    grid: tuple[int, int]
    size: tuple[int, int]
    shift: tuple[int, int]

    @classmethod
    def of(cls, grid: tuple[int, int], window: int, shift: int) -> ShiftedWindows:
        """Square windows on a grid. Along an axis that fits into one, they end with it and are not shifted."""
        size = tuple(min(window, cells) for cells in grid)
        return cls(tuple(grid), size, tuple(shift if cells > window else 0 for cells in grid))

    @property
    def padded(self) -> tuple[int, int]:
        """The grid, up to whole windows."""
        return tuple(-(-cells // window) * window for cells, window in zip(self.grid, self.size, strict=True))

    def split(self, tokens: Tensor) -> Tensor:
        """Tokens ``(..., h, w, C)`` window by window: ``(..., windows, length, C)``."""
        bottom, right = (full - cells for full, cells in zip(self.padded, self.grid, strict=True))
        if bottom or right:
            tokens = F.pad(tokens, (0, 0, 0, right, 0, bottom))
        if any(self.shift):
            tokens = tokens.roll([-cells for cells in self.shift], dims=(-3, -2))
        rows, columns = self.size
        tokens = tokens.unflatten(-2, (-1, columns)).unflatten(-4, (-1, rows))  # (..., m, rows, n, columns, C)
        return tokens.transpose(-4, -3).flatten(-3, -2).flatten(-4, -3)

    def join(self, windows: Tensor) -> Tensor:
        """What `split` took apart, without the padding."""
        across = self.padded[1] // self.size[1]
        tokens = windows.unflatten(-2, self.size).unflatten(-4, (-1, across))  # (..., m, n, rows, columns, C)
        tokens = tokens.transpose(-4, -3).flatten(-3, -2).flatten(-4, -3)
        if any(self.shift):
            tokens = tokens.roll(self.shift, dims=(-3, -2))
        return tokens[..., : self.grid[0], : self.grid[1], :]

    def mask(self, device: torch.device) -> Tensor | None:
        """Who attends to whom within each window, ``(windows, length, length)`` bool; None if all do to all.

        Tokens that the shift brought together from opposite edges ignore each other, and all ignore the padding.
        """
        return _mask(self, device) if any(self.shift) or self.padded != self.grid else None


@lru_cache(maxsize=64)
def _mask(windows: ShiftedWindows, device: torch.device) -> Tensor:
    # a shared mask must serve training too, so it may not be an inference tensor
    with torch.inference_mode(False), torch.no_grad():
        rows, columns = (
            torch.arange(full, device=device).ge(cells).long() * 2 + torch.arange(full, device=device).lt(shift).long()
            for full, cells, shift in zip(windows.padded, windows.grid, windows.shift, strict=True)
        )
        regions = (3 * rows[:, None] + columns)[..., None]
        # padding is part of the regions already
        whole = ShiftedWindows(windows.padded, windows.size, windows.shift)
        regions = whole.split(regions)[..., 0]
        return regions[:, :, None] == regions[:, None, :]
