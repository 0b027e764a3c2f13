"""Attention with rotary positions that are applied in one pass over queries and keys."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.models.eva import EvaAttention
from torch import Tensor

from ..positions import Rotations

# PyTorch's CPU kernel for half precision takes so many keys at a time, and half as long again for a rest that is no
# multiple of the second: measured at the 1,297 tokens of ViT-L/14 on 512 px.
_CPU_KEYS, _CPU_ALIGNMENT = 512, 32


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
            k, v, attn_mask = align_keys(k, v)
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


def align_keys(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Append keys that no query sees, where that makes attention faster: in half precision on a CPU, without gradients.

    Args:
        k: Keys ``(B, heads, L, head_dim)``.
        v: Values likewise.

    Returns:
        Both, and the mask that hides what was appended, if anything was.
    """
    rest = k.shape[-2] % _CPU_KEYS
    missing = -rest % _CPU_ALIGNMENT
    if k.device.type != 'cpu' or k.dtype.itemsize > 2 or torch.is_grad_enabled() or not 0 < missing < rest:
        return k, v, None
    mask = torch.zeros(1, 1, 1, k.shape[-2] + missing, dtype=k.dtype, device=k.device)
    mask[..., -missing:] = -torch.inf
    return F.pad(k, (0, 0, 0, missing)), F.pad(v, (0, 0, 0, missing)), mask
