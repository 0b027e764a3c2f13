"""Attention with rotary positions that are applied in one pass over queries and keys."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.models.eva import EvaAttention
from torch import Tensor, nn

from ..positions import Rotations
from .attention import attend


class RotaryAttention(EvaAttention):
    """timm's attention of EVA-02, with the same parameters and, bit for bit, the same rotations.

    timm sets the class token aside, rotates what is left in five operations and joins both again; here the class token
    is turned by nothing like any other token by its angle.
    """

    def forward(self, x: Tensor, rope: Rotations, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Mix tokens ``(B, L, W)``; ``rope`` has a row for each of them."""
        projections = self.q_proj, self.k_proj
        # compiled code fuses the sums of this, but not complex numbers; what is no linear map has no rows to sort
        if torch.compiler.is_compiling() and all(isinstance(projection, nn.Linear) for projection in projections):
            q, k = (rotate_halves(project_in_halves(x, projection, self.num_heads), rope) for projection in projections)
        else:
            q, k = (rotate(projection(x).unflatten(-1, (self.num_heads, -1)), rope) for projection in projections)
        v = self.v_proj(x).unflatten(-1, (self.num_heads, -1))
        q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
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
    wide = heads.to(torch.promote_types(heads.dtype, torch.float32))
    pairs = torch.view_as_complex(wide.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotations.turns).flatten(-2).to(heads.dtype)


def project_in_halves(x: Tensor, projection: nn.Linear, num_heads: int) -> Tensor:
    """Queries or keys with the first channels of all pairs of a head before the second ones.

    Scores do not depend on the order of channels. In this one `rotate_halves` exchanges rows of neighbours, which
    vector units can, where it would exchange neighbours; the rows of a weight are sorted while they are cast.

    Args:
        x: Tokens ``(B, L, W)``.
        projection: Their linear map, of pairs of channels side by side.
        num_heads: Heads.

    Returns:
        ``(B, L, heads, head_dim)``.
    """
    weight, bias = (
        None if parameter is None else parameter.unflatten(0, (num_heads, -1, 2)).transpose(1, 2).flatten(0, 2)
        for parameter in (projection.weight, projection.bias)
    )
    return F.linear(x, weight, bias).unflatten(-1, (num_heads, -1))


def rotate_halves(heads: Tensor, rotations: Rotations) -> Tensor:
    """`rotate` for what `project_in_halves` returns, without complex numbers."""
    halves = heads.to(torch.promote_types(heads.dtype, torch.float32)).unflatten(-1, (2, -1))
    turned = halves * rotations.cos + halves.flip(-2) * rotations.sin
    return turned.flatten(-2).to(heads.dtype)
