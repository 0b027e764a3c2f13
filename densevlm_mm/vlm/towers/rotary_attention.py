"""Attention with rotary positions that are applied in one pass over queries and keys."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.models.eva import EvaAttention
from torch import Tensor

from ..positions import Rotations
from .attention import attend


class RotaryAttention(EvaAttention):
    """timm's attention of EVA-02, with the same parameters and, bit for bit, the same rotations.

    timm sets the class token aside, rotates what is left in five operations and joins both again; here the class token
    is turned by nothing like any other token by its angle.
    """

    def forward(self, x: Tensor, rope: Rotations, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Mix tokens ``(B, L, W)``; ``rope`` has a row for each of them."""
        q, k, v = (
            projection(x).unflatten(-1, (self.num_heads, -1)) for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k, v = (tensor.transpose(1, 2) for tensor in (rotate(q, rope), rotate(k, rope), v))
        if attn_mask is None and not is_causal:
            mixed = attend(q, k, v)
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, is_causal=is_causal)
        return self.proj(self.norm(mixed.transpose(1, 2).flatten(2)))


def rotate(heads: Tensor, rotations: Rotations) -> Tensor:
    """Turn each pair of channels of each token by its angle, in no less than the fp32 of the angles.

    Args:
        heads: ``(B, L, heads, head_dim)``.
        rotations: Of all L tokens.

    Returns:
        Like ``heads``.
    """
    wide = heads.to(torch.promote_types(heads.dtype, rotations.cos.dtype))
    pairs = wide.unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():  # which fuses these, but not complex numbers
        turned = wide * rotations.cos + pairs.flip(-1).flatten(-2) * rotations.sin
    else:
        turned = torch.view_as_real(torch.view_as_complex(pairs) * rotations.turns).flatten(-2)
    return turned.to(heads.dtype)
