"""Position tables of vision transformers for any token grid, as the released CLIPs were evaluated."""

from __future__ import annotations

from functools import lru_cache

import torch
from timm.layers import build_rotary_pos_embed, resample_abs_pos_embed
from torch import Tensor


def resize_position_embedding(
    table: Tensor, grid: tuple[int, int], native: tuple[int, int], num_prefix: int = 1
) -> Tensor:
    """Resample a learnt position embedding to another grid; the class slot is kept.

    timm and open_clip anti-alias here by default. The EVA-CLIP line does not, and its bicubic kernel differs even when
    up-sampling, so a dense feature would move by 0.25 %.

    Args:
        table: ``(1, num_prefix + h0 * w0, width)``, class slot first.
        grid: Wanted ``(h, w)``.
        native: ``(h0, w0)`` of the table.
        num_prefix: Slots that belong to no patch.

    Returns:
        ``(1, num_prefix + h * w, width)`` in the table's dtype; the table itself at its native grid.
    """
    if grid == native:
        return table
    return resample_abs_pos_embed(
        table, new_size=list(grid), old_size=list(native), num_prefix_tokens=num_prefix, antialias=False
    )


@lru_cache(maxsize=64)
def rotary_table(grid: tuple[int, int], head_dim: int, span: int, device: torch.device) -> Tensor:
    """Axial rotary table of a grid, rows in the first half of each head and columns in the second.

    Positions are ``index / grid * span`` on either axis, so every grid covers the span of pre-training. Kept in fp32
    whatever the tower's dtype is, and shared by all blocks and models that ask for the same table.

    Args:
        grid: Token ``(h, w)``.
        head_dim: Channels per attention head.
        span: Grid size at which the model was first trained (16 for EVA-02-CLIP).
        device: Where the table is needed.

    Returns:
        ``(h * w, 2 * head_dim)``: sines, then cosines, as timm's attention takes them.
    """
    # a shared table must serve training too, so it may not be an inference tensor
    with torch.inference_mode(False), torch.no_grad():
        sin, cos = build_rotary_pos_embed(
            list(grid), dim=head_dim, in_pixels=False, ref_feat_shape=[span, span], device=device, dtype=torch.float32
        )
        return torch.cat([sin, cos], dim=-1)
