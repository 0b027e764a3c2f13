"""Position tables of vision transformers for any token grid, as the released CLIPs were evaluated."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import build_rotary_pos_embed, resample_abs_pos_embed
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

# The last resampling of each frozen table: on a GPU a bicubic kernel of no parallelism, 6 ms for 7 MB.
_RESIZED: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def _is_traced() -> bool:
    """Whether tensors may be stand-ins for real ones, as under torch.export and `FakeTensorMode`."""
    if torch.compiler.is_dynamo_compiling():
        # `is_exporting()` is true in any compilation; torch 2.6 has not even the flag
        return getattr(torch.compiler, '_is_exporting_flag', False)
    # `detect_fake_mode` says the same, but takes 30 times as long, and this is asked in each block
    fake_mode = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE)
    return fake_mode is not None or torch.compiler.is_compiling()


def _shared(make: Callable[..., Any]) -> Callable[..., Any]:
    """Keep what a function of hashable arguments makes, unless a trace asks: its tensors are of no use after it."""
    kept = lru_cache(maxsize=64)(make)

    @wraps(make)
    def get(*args: Any, **options: Any) -> Any:
        return make(*args, **options) if _is_traced() else kept(*args, **options)

    get.cache_clear, get.cache_info = kept.cache_clear, kept.cache_info
    return get


def resize_position_embedding(
    table: Tensor, grid: tuple[int, int], native: tuple[int, int], num_prefix: int = 1
) -> Tensor:
    """Resample a learnt position embedding to another grid; the class slot is kept.

    timm and open_clip anti-alias here by default. The EVA-CLIP line does not, and its bicubic kernel differs even when
    up-sampling, so a dense feature would move by 0.25 %.

    A table that does not train is resampled once per grid, and again when it was changed. A change of values through
    ``table.data`` goes unnoticed, as it leaves the tensor's version alone; write to the table itself under ``no_grad``.

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
    if table.requires_grad or _is_traced() or table.is_inference():
        return _resample(table, grid, native, num_prefix)
    key = grid, native, num_prefix, table._version, table.data_ptr(), table.dtype
    found, resized = _RESIZED.get(table, (None, None))
    if found != key:
        with torch.inference_mode(False), torch.no_grad():  # it may serve training later
            resized = _resample(table, grid, native, num_prefix)
        _RESIZED[table] = key, resized
    return resized


def _resample(table: Tensor, grid: tuple[int, int], native: tuple[int, int], num_prefix: int) -> Tensor:
    return resample_abs_pos_embed(
        table, new_size=list(grid), old_size=list(native), num_prefix_tokens=num_prefix, antialias=False
    )


@_shared
def rotary_table(grid: tuple[int, int], head_dim: int, span: int, device: torch.device) -> Tensor:
    """Axial rotary table of a grid, rows in the first half of each head and columns in the second.

    Positions are ``index / grid * span`` on either axis, so every grid covers the span of pre-training. Kept in fp32
    whatever the tower's dtype is, and shared by all blocks and models that ask for the same table (under torch.export
    and with fake tensors made anew).

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


class Rotations(NamedTuple):
    """By which angles the pairs of channels of each token turn.

    Attributes:
        turns: ``(L, 1, head_dim / 2)``, complex: factors of pairs that are complex numbers.
        cos: ``(L, 1, 1, head_dim / 2)``, fp32: for pairs whose first channels come before all second ones.
        sin: ``(L, 1, 2, head_dim / 2)`` likewise: what either channel is turned into the other by.
    """

    turns: Tensor
    cos: Tensor
    sin: Tensor


@_shared
def token_rotations(grid: tuple[int, int], head_dim: int, span: int, device: torch.device) -> Rotations:
    """`rotary_table` for a class token, which does not turn, and the patches of a grid; shared likewise."""
    with torch.inference_mode(False), torch.no_grad():
        sin, cos = rotary_table(grid, head_dim, span, device)[:, None, ::2].chunk(2, dim=-1)
        sin, cos = F.pad(sin, (0, 0, 0, 0, 1, 0)), F.pad(cos, (0, 0, 0, 0, 1, 0), value=1.0)
        return Rotations(torch.complex(cos, sin), cos[:, None], torch.stack([-sin, sin], dim=-2))
