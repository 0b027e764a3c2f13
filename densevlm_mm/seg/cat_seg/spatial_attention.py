"""Spatial aggregation: within each class, every position looks at its window."""

from __future__ import annotations

import torch.nn.functional as F
from timm.layers import Mlp
from torch import Tensor, nn

from .guided_layers import GuidedLinear
from .shifted_windows import ShiftedWindows


class WindowAttention(nn.Module):
    """Attention within windows, where guidance helps to find whom to attend to.

    Args:
        dim: Channels of the tokens.
        guidance_dim: Channels of the guidance.
        num_heads: Attention heads.
    """

    def __init__(self, dim: int, guidance_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = GuidedLinear(dim, guidance_dim)
        self.k = GuidedLinear(dim, guidance_dim)
        self.v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, guidance: Tensor, windows: ShiftedWindows) -> Tensor:
        """Mixed tokens ``(B, T, h, w, dim)``; guidance ``(B, 1, h, w, guidance_dim)``."""
        q, k, v = self.q(tokens, guidance), self.k(tokens, guidance), self.v(tokens)
        q, k, v = (self._heads(windows.split(x.flatten(0, 1))) for x in (q, k, v))
        mask = windows.mask(tokens.device)
        if mask is not None:
            # windows and heads share an axis, so that one mask serves all images and classes
            mask = mask.repeat_interleave(self.num_heads, dim=0)[None]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        mixed = mixed.unflatten(1, (-1, self.num_heads)).transpose(2, 3).flatten(3)
        return self.proj(windows.join(mixed).unflatten(0, tokens.shape[:2]))

    def _heads(self, windows: Tensor) -> Tensor:
        """``(N, windows, length, dim) -> (N, windows * heads, length, dim / heads)``."""
        return windows.unflatten(-1, (self.num_heads, -1)).transpose(2, 3).flatten(1, 2)


class WindowBlock(nn.Module):
    """Pre-norm transformer block with `WindowAttention`.

    Args:
        dim: Channels of the tokens.
        guidance_dim: Channels of the guidance.
        num_heads: Attention heads.
        window: Side of a window in tokens.
        shift: By how many tokens the windows are shifted.
    """

    def __init__(self, dim: int, guidance_dim: int, *, num_heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, guidance_dim, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, tokens: Tensor, guidance: Tensor) -> Tensor:
        """See `WindowAttention`."""
        windows = ShiftedWindows.of(tuple(tokens.shape[2:4]), self.window, self.shift)
        tokens = tokens + self.attn(self.norm1(tokens), guidance, windows)
        return tokens + self.mlp(self.norm2(tokens))


class SpatialAggregation(nn.Module):
    """Two window blocks, the second with shifted windows, guided by the look of the image.

    Args:
        dim: Channels of the cost volume.
        guidance_dim: Channels of the guidance.
        num_heads: Attention heads.
        window: Side of a window in tokens.
    """

    def __init__(self, dim: int, guidance_dim: int, *, num_heads: int, window: int) -> None:
        super().__init__()
        self.guidance_norm = nn.LayerNorm(guidance_dim)
        self.blocks = nn.ModuleList(
            WindowBlock(dim, guidance_dim, num_heads=num_heads, window=window, shift=shift)
            for shift in (0, window // 2)
        )

    def forward(self, volume: Tensor, guidance: Tensor) -> Tensor:
        """Aggregate every class by itself.

        Args:
            volume: ``(B, T, h, w, dim)``.
            guidance: ``(B, h, w, guidance_dim)``.

        Returns:
            ``(B, T, h, w, dim)``.
        """
        guidance = self.guidance_norm(guidance)[:, None]
        for block in self.blocks:
            volume = block(volume, guidance)
        return volume
