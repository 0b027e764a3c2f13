"""Layer norms that lead into matrix products."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm
from torch import Tensor, nn

# Matrix units want rows of a multiple of this; with ViT-L's 2,730 hidden channels a GPU reaches a third of its rate.
ALIGNMENT = 64


class ProductNorm(LayerNorm):
    """Layer norm of what only goes into matrix products.

    Autocast norms in fp32 and casts that for every product anew; this casts it once.
    """

    def forward(self, x: Tensor) -> Tensor:
        x, device = super().forward(x), x.device.type
        casts = x.dtype == torch.float32 and device != 'meta' and torch.is_autocast_enabled(device)
        return x.to(torch.get_autocast_dtype(device)) if casts else x


class FoldedNorm(nn.Module):
    """Layer norm and the linear map after it, of weights that stay, as one product that is scaled afterwards.

    ``W (g (x - mean) / std + b) + c`` is ``(V x) / std + d`` where ``V`` is ``W g`` with its rows centred, which takes
    care of the mean, and ``d = W b + c``. So the norm is a sum and a sum of squares, which compiled code finds while it
    makes ``x``.

    Args:
        norm: Layer norm.
        linear: What follows it.
    """

    def __init__(self, norm: nn.LayerNorm, linear: nn.Linear) -> None:
        super().__init__()
        self.features, self.eps = linear.in_features, norm.eps
        weight, gain = linear.weight.detach().double(), norm.weight.detach().double()
        folded = weight * gain
        folded = folded - folded.mean(1, keepdim=True)
        bias = linear.bias.detach().double() + weight @ norm.bias.detach().double()
        dtype = linear.weight.dtype
        self.weight = nn.Parameter(pad_to_alignment(folded, 1).to(dtype), requires_grad=False)
        self.bias = nn.Parameter(bias.to(dtype), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., features) -> (..., out)``; ``x`` may come padded with zeros up to the alignment."""
        if missing := self.weight.shape[1] - x.shape[-1]:
            x = F.pad(x, (0, missing))
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        mean = wide.sum(-1, keepdim=True) / self.features
        variance = wide.square().sum(-1, keepdim=True) / self.features - mean.square()
        scale = (variance.clamp(min=0) + self.eps).rsqrt()
        if x.dtype == torch.float16:  # whose range products of what is not yet scaled may leave
            return F.linear((wide * scale).to(x.dtype), self.weight, self.bias)
        return (F.linear(x, self.weight) * scale + self.bias).to(x.dtype)


def pad_to_alignment(tensor: Tensor, dim: int) -> Tensor:
    """Append zeros along a dimension up to a multiple of the alignment, unless it is smaller than that anyway."""
    size = tensor.shape[dim]
    missing = -size % ALIGNMENT if size > ALIGNMENT else 0
    return F.pad(tensor, [0, 0] * (tensor.ndim - 1 - dim) + [0, missing])
