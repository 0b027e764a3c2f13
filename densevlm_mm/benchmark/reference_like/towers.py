"""EVA-02-CLIP's image tower as plain functions of its weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.models.eva import EvaAttention, EvaBlock
from torch import Tensor

from densevlm_mm.vlm.positions import rotary_table
from densevlm_mm.vlm.towers import EvaTower, VisionTower


def dense_features(tower: VisionTower, images: Tensor, *, fused: bool) -> Tensor:
    """Dense features, L2-normalised.

    Positions are interpolated anew in each pass. The map is a permuted view, as its pooling then gets it.

    Args:
        tower: An EVA-02-CLIP tower.
        images: ``(B, 3, H, W)``, normalised.
        fused: Attention in one fused kernel; otherwise its weights are made, (B, heads, L, L).

    Returns:
        ``(B, C, h, w)``.

    Raises:
        ValueError: For a tower of another family.
    """
    tokens, grid = _embed(_eva(tower), images)
    rope = _rope(tower, grid, tokens)
    *early, last = tower.blocks
    for block in early:
        tokens = _run(block, tokens, rope, fused)
    value = last.attn.v_proj(last.norm1(tokens))
    tokens = tokens + last.attn.proj(last.attn.norm(value))
    tokens = tokens + last.mlp(last.norm2(tokens))
    dense = tower.trunk.head(tower.trunk.norm(tokens[:, 1:]))
    return F.normalize(dense, dim=-1).transpose(1, 2).unflatten(2, grid)


def image_embeddings(tower: VisionTower, images: Tensor, *, fused: bool) -> Tensor:
    """Embeddings ``(B, C)``, L2-normalised, of whole images (B, 3, H, W); the rest as in `dense_features`."""
    tokens, grid = _embed(_eva(tower), images)
    rope = _rope(tower, grid, tokens)
    for block in tower.blocks:
        tokens = _run(block, tokens, rope, fused)
    return F.normalize(tower.trunk.head(tower.trunk.norm(tokens)[:, 0]), dim=-1)


def _eva(tower: VisionTower) -> EvaTower:
    if not isinstance(tower, EvaTower):
        raise ValueError(
            f'the baseline is written for EVA-02-CLIP towers, not for {type(tower).__name__}; measure without: '
            '--baseline none'
        )
    return tower


def _embed(tower: EvaTower, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Tokens before the first block, class token first, and their grid."""
    trunk = tower.trunk
    patches = trunk.patch_embed.proj(images)
    grid = tuple(patches.shape[-2:])
    native = tuple(trunk.patch_embed.grid_size)
    table = trunk.pos_embed[:, 1:]
    if grid != native:
        square = table.transpose(1, 2).unflatten(2, native)
        table = F.interpolate(square, size=grid, mode='bicubic', align_corners=False).flatten(2).transpose(1, 2)
    tokens = torch.cat([trunk.cls_token.expand(len(images), -1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
    return tokens + torch.cat([trunk.pos_embed[:, :1], table], dim=1), grid


def _rope(tower: EvaTower, grid: tuple[int, int], tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Sines and cosines ``(h * w, head_dim)``."""
    return rotary_table(grid, tower.head_dim, tower.rope_span, tokens.device).chunk(2, dim=-1)


def _run(block: EvaBlock, tokens: Tensor, rope: tuple[Tensor, Tensor], fused: bool) -> Tensor:
    tokens = tokens + _attend(block.attn, block.norm1(tokens), rope, fused)
    return tokens + block.mlp(block.norm2(tokens))


def _attend(attention: EvaAttention, tokens: Tensor, rope: tuple[Tensor, Tensor], fused: bool) -> Tensor:
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    q, k, v = (p(tokens).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for p in projections)
    q, k = _rotate(q, rope).type_as(v), _rotate(k, rope).type_as(v)
    if fused:
        mixed = F.scaled_dot_product_attention(q, k, v)
    else:
        weights = (q * attention.scale) @ k.transpose(-2, -1)
        mixed = weights.softmax(-1) @ v
    return attention.proj(attention.norm(mixed.transpose(1, 2).flatten(2)))


def _rotate(heads: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary positions on all tokens ``(B, heads, L, head_dim)`` but the class token."""
    sin, cos = (table.to(heads.dtype) for table in rope)
    first, patches = heads[:, :, :1], heads[:, :, 1:]
    turned = torch.stack([-patches[..., 1::2], patches[..., ::2]], dim=-1).flatten(-2)
    return torch.cat([first, patches * cos + turned * sin], dim=2)
