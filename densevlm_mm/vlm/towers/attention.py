"""Scaled dot-product attention, with what bfloat16 on a CPU needs to be fast."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import cpu_bfloat16
from .attention_by_products import attend_by_products

# PyTorch's CPU kernel for bfloat16 takes so many keys at a time, and half as long again for a rest that is no multiple
# of the second: measured at the 1,297 tokens of ViT-L/14 on 512 px.
_KEYS, _ALIGNMENT = 512, 32


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Mix values by the softmax of queries and keys.

    Args:
        q: Queries ``(B, heads, L, head_dim)``.
        k: Keys likewise.
        v: Values likewise.

    Returns:
        Like ``q``.
    """
    mask = None
    if q.device.type == 'cpu' and q.dtype == torch.bfloat16 and cpu_bfloat16.CPU_MULTIPLIES_BFLOAT16:
        if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
            return attend_by_products(q, k, v)
        k, v, mask = align_keys(k, v)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def align_keys(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Append keys that no query sees, where that makes PyTorch's kernel for bfloat16 on a CPU faster.

    Args:
        k: Keys ``(B, heads, L, head_dim)``.
        v: Values likewise.

    Returns:
        Both, and the mask that hides what was appended, if anything was.
    """
    rest = k.shape[-2] % _KEYS
    missing = -rest % _ALIGNMENT
    if not 0 < missing < rest:
        return k, v, None
    mask = torch.zeros(1, 1, 1, k.shape[-2] + missing, dtype=k.dtype, device=k.device)
    mask[..., -missing:] = -torch.inf
    return F.pad(k, (0, 0, 0, missing)), F.pad(v, (0, 0, 0, missing)), mask
