"""Class aggregation: at each position, every class looks at all others."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from torch import Tensor, nn

from .guided_layers import GuidedLinear

_EPS = 1e-6


class LinearAttention(nn.Module):
    """Attention whose cost grows linearly with the number of classes (Katharopoulos et al., arXiv:2006.16236).

    Args:
        dim: Channels of the tokens.
        guidance_dim: Channels of the guidance, which takes part in queries and keys.
        num_heads: Attention heads.
    """

    def __init__(self, dim: int, guidance_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = GuidedLinear(dim, guidance_dim)
        self.k = GuidedLinear(dim, guidance_dim)
        self.v = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, guidance: Tensor, counts: Tensor) -> Tensor:
        """Mix tokens over the classes.

        Args:
            tokens: ``(B, N, T, dim)`` of T classes at N positions.
            guidance: ``(B, 1, T, guidance_dim)``.
            counts: ``(T,)``, as how many equal classes each is attended to.

        Returns:
            ``(B, N, T, dim)``.
        """
        q, k, v = self.q(tokens, guidance), self.k(tokens, guidance), self.v(tokens)
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(2, 3) for x in (q, k, v))  # (B, N, heads, T, d)
        q, k = F.elu(q) + 1, (F.elu(k) + 1) * counts[:, None].to(k.dtype)
        total = counts.sum()  # keeps sums over all classes within the range of fp16
        context = k.transpose(-2, -1) @ (v / total)
        weight = q @ k.sum(-2)[..., None] + _EPS
        return (q @ context / weight * total).transpose(2, 3).flatten(3)


class ClassAggregation(nn.Module):
    """Pre-norm transformer block over the classes, on a pooled volume; blind to their order.

    Args:
        dim: Channels of the cost volume.
        guidance_dim: Channels of the guidance.
        num_heads: Attention heads.
        pad_len: Learnt tokens fill up to so many classes, which makes vocabularies of different sizes alike; 0: none.
    """

    def __init__(self, dim: int, guidance_dim: int, *, num_heads: int, pad_len: int) -> None:
        super().__init__()
        self.pad_len = pad_len
        self.padding_tokens = nn.Parameter(torch.zeros(1, 1, dim)) if pad_len else None
        self.padding_guidance = nn.Parameter(torch.zeros(1, 1, guidance_dim)) if pad_len else None
        self.norm1 = nn.LayerNorm(dim)
        self.attn = LinearAttention(dim, guidance_dim, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim, act_layer=nn.ReLU)

    def forward(self, volume: Tensor, guidance: Tensor, pooling: tuple[int, int]) -> Tensor:
        """Aggregate over the classes and add the result.

        Args:
            volume: ``(B, T, h, w, dim)``.
            guidance: ``(B, T, guidance_dim)``.
            pooling: Cells ``(rows, columns)`` that are averaged before.

        Returns:
            ``(B, T, h, w, dim)``.
        """
        pooled = _pool(volume, pooling)
        tokens, guidance = pooled.flatten(2, 3).transpose(1, 2), guidance[:, None]
        counts = tokens.new_ones(tokens.shape[2])
        if self.pad_len:
            # one token stands for all of the padding, which is alike; in every step, so that it always has a gradient
            counts = torch.cat([counts, counts.new_full((1,), max(self.pad_len - len(counts), 0))])
            tokens, guidance = _append(tokens, self.padding_tokens), _append(guidance, self.padding_guidance)
        tokens = tokens + self.attn(self.norm1(tokens), guidance, counts)
        tokens = tokens[:, :, : volume.shape[1]]
        tokens = tokens + self.mlp(self.norm2(tokens))
        return volume + _resize(tokens.transpose(1, 2).unflatten(2, pooled.shape[2:4]), volume.shape[2:4])


def _append(tokens: Tensor, token: Tensor) -> Tensor:
    """Tokens ``(B, N, T, C)`` and one more ``(1, 1, C)`` along T."""
    return torch.cat([tokens, token[None].expand(*tokens.shape[:2], 1, -1)], dim=2)


def _pool(volume: Tensor, pooling: tuple[int, int]) -> Tensor:
    if tuple(pooling) == (1, 1):
        return volume
    maps = F.avg_pool2d(_as_maps(volume), tuple(pooling), ceil_mode=True)
    return _as_volume(maps, len(volume))


def _resize(volume: Tensor, grid: tuple[int, int]) -> Tensor:
    if volume.shape[2:4] == grid:
        return volume
    maps = F.interpolate(_as_maps(volume), tuple(grid), mode='bilinear', align_corners=True)
    return _as_volume(maps, len(volume))


def _as_maps(volume: Tensor) -> Tensor:
    """``(B, T, h, w, C) -> (B * T, C, h, w)``."""
    return volume.flatten(0, 1).permute(0, 3, 1, 2)


def _as_volume(maps: Tensor, batch: int) -> Tensor:
    return maps.permute(0, 2, 3, 1).unflatten(0, (batch, -1))
