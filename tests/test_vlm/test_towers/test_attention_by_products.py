"""Attention by products is PyTorch's, and its gradients are no worse."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from densevlm_mm.vlm.towers.attention_by_products import _attention, attend_by_products


def heads(batch: int, count: int, length: int, channels: int, seed: int = 0) -> list[Tensor]:
    """Queries, keys, values and the gradient of what they mix."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(4, batch, length, count, channels, generator=generator)
    tokens[:2] *= 2
    return list(tokens.bfloat16().transpose(2, 3).unbind())


def with_gradients(attention, q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> list[Tensor]:
    inputs = [x.detach().requires_grad_() for x in (q, k, v)]
    mixed = attention(*inputs)
    return [mixed, *torch.autograd.grad(mixed, inputs, grad)]


def relative(ours: Tensor, exact: Tensor) -> float:
    return ((ours.double() - exact).norm() / exact.norm()).item()


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 3),
    count=st.integers(1, 5),
    length=st.integers(2, 70),
    channels=st.sampled_from([8, 30, 64, 80]),
    seed=st.integers(0, 99),
)
def test_gradients_are_as_exact_as_those_of_the_kernel(batch, count, length, channels, seed):
    tokens = heads(batch, count, length, channels, seed)
    exact = with_gradients(F.scaled_dot_product_attention, *(x.double() for x in tokens))
    kernel = with_gradients(F.scaled_dot_product_attention, *tokens)
    ours = with_gradients(attend_by_products, *tokens)
    for mine, theirs, truth in zip(ours, kernel, exact, strict=True):
        assert mine.dtype == torch.bfloat16
        assert mine.shape == truth.shape
        # where a softmax is all but 0 and 1, little is left of a gradient, and neither gets that right
        assert relative(mine, truth) < 1.5 * relative(theirs, truth) + 0.015


def test_forward_is_the_kernel_itself():
    q, k, v, _ = heads(2, 3, 40, 16)
    assert torch.equal(attend_by_products(q.requires_grad_(), k, v), F.scaled_dot_product_attention(q, k, v))


def test_keys_far_from_every_query_take_no_gradient():
    q, k, v, grad = heads(1, 2, 40, 16)
    q, k = q.abs(), k.abs()
    k[:, :, 7] = -100
    _, dq, dk, dv = with_gradients(attend_by_products, q, k, v, grad)
    assert torch.isfinite(dq).all()
    assert not dk[:, :, 7].any()
    assert not dv[:, :, 7].any()


@pytest.mark.parametrize('length', [33, 64])
def test_compiled_code_keeps_the_operators(length):
    torch.library.opcheck(_attention, [x.requires_grad_() for x in heads(2, 3, length, 16)[:3]])
    tokens = heads(2, 3, length, 16)
    compiled = torch.compile(attend_by_products, backend='aot_eager', fullgraph=True)
    for ours, plain in zip(with_gradients(compiled, *tokens), with_gradients(attend_by_products, *tokens), strict=True):
        assert torch.equal(ours, plain)
