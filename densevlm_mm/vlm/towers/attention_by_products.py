"""Attention on a CPU in bfloat16 whose gradients are matrix products."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

# Products like rows of a multiple of this.
_ALIGNMENT = 32
# Heads that a gradient takes at once, so that their weights stay in the cache: at the 1,025 tokens of ViT-B/16.
_HEADS = 2


def attend_by_products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scaled dot-product attention in bfloat16 on a CPU, for what trains; ``(B, heads, L, head_dim)`` each.

    Forward it is PyTorch's kernel. Its gradients are that kernel's up to bfloat16, where the weights are rounded once
    more, as logarithms.
    """
    return _attention(q, k, v)[0]


# Operators of their own, so that torch.compile leaves them as they are.
@torch.library.custom_op('densevlm_mm::attention', mutates_args=())
def _attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """PyTorch's CPU kernel: mixed values, and the log of the sum of exponentials ``(B, heads, L)`` of scores."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)


@torch.library.custom_op('densevlm_mm::attention_backward', mutates_args=())
def _attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, mixed: Tensor, log_sum_exp: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values by matrix products: PyTorch's CPU kernel takes half as long again.

    With the weights ``P = exp(s Q K' - log_sum_exp)`` and ``dP = dO V'``, what the softmax sends back is
    ``dS = P (dP - sum(dO O))`` (Dao et al., FlashAttention, arXiv:2205.14135, appendix B.2). Both subtractions are
    channels of the products before them and so happen in fp32, before anything is rounded.
    """
    batch, heads, length, channels = q.shape
    scale = channels**-0.5
    padded = _padded(length)
    queries = _widen(q, padded, subtracted=log_sum_exp / scale)
    keys = _widen(k, padded)
    grads = _widen(grad, padded, subtracted=(grad.float() * mixed.float()).sum(-1))
    values = _widen(v, padded)
    # the weight of keys that are none: exp(-1e4 s) = 0
    queries[..., -1], keys[:, length:, -1] = 1, -1e4

    dq, dk, dv = (q.new_empty(batch * heads, padded, channels) for _ in range(3))
    weights, scores = q.new_empty(2, _HEADS, padded, padded)
    for first in range(0, batch * heads, _HEADS):
        some = slice(first, first + _HEADS)
        # a row for each key: so only one of the products has its left factor transposed, which costs
        p, ds = weights[: len(dq[some])], scores[: len(dq[some])]
        torch.baddbmm(p, keys[some], queries[some].mT, beta=0, alpha=scale, out=p).exp_()
        torch.bmm(p, grads[some, :, :channels], out=dv[some])
        torch.bmm(values[some], grads[some].mT, out=ds).mul_(p)
        torch.baddbmm(dk[some], ds, queries[some, :, :channels], beta=0, alpha=scale, out=dk[some])
        torch.baddbmm(dq[some], ds.mT, keys[some, :, :channels], beta=0, alpha=scale, out=dq[some])
    return tuple(_narrow(x, q) for x in (dq, dk, dv))


@_attention.register_fake
def _attention_shapes(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    # in memory the kernel's heads come after its tokens
    tokens = q.transpose(1, 2)
    mixed, log_sum_exp = q.new_empty(tokens.shape), q.new_empty(tokens.shape[:3], dtype=torch.float32)
    return mixed.transpose(1, 2), log_sum_exp.transpose(1, 2)


@_attention_backward.register_fake
def _gradient_shapes(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, mixed: Tensor, log_sum_exp: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    batch, heads, length, channels = q.shape
    return tuple(_narrow(q.new_empty(batch * heads, _padded(length), channels), q) for _ in range(3))


def _keep(ctx: FunctionCtx, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _send_back(ctx: FunctionCtx, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _attention_backward(grad, *ctx.saved_tensors)


_attention.register_autograd(_send_back, setup_context=_keep)


def _padded(length: int) -> int:
    return length + -length % _ALIGNMENT


def _narrow(x: Tensor, like: Tensor) -> Tensor:
    """Tokens ``(B * heads, L', C)`` as ``(B, heads, L, C)``."""
    return x[:, : like.shape[2]].unflatten(0, like.shape[:2])


def _widen(x: Tensor, length: int, subtracted: Tensor | None = None) -> Tensor:
    """Tokens ``(B, heads, L, C)`` as factors of a product from which a number per row of the left one is subtracted.

    Args:
        x: Left or right factor.
        length: Tokens to come out, the last ones zeros.
        subtracted: ``(B, heads, L)`` of the left factor, fp32.

    Returns:
        ``(B * heads, length, C')``: the channels, two of what is subtracted and zeros, at least one.
    """
    batch, heads, tokens, channels = x.shape
    wide = x.new_zeros(batch, heads, length, _padded(channels + 3))
    wide[:, :, :tokens, :channels] = x
    if subtracted is None:
        wide[..., channels : channels + 2] = 1
    else:
        # as two numbers of x's dtype, the second of which is what the first leaves
        wide[:, :, :tokens, channels] = -subtracted
        wide[:, :, :tokens, channels + 1] = -subtracted - wide[:, :, :tokens, channels]
    return wide.flatten(0, 1)
