"""Patch embedding by a product equals the convolution."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from densevlm_mm.vlm.towers.patches import embed_patches


@given(
    patch=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    size=st.tuples(st.integers(5, 24), st.integers(5, 24)),
    bias=st.booleans(),
)
def test_equals_the_convolution(patch, size, bias):
    projection = nn.Conv2d(3, 7, patch, patch, bias=bias).double()
    images = torch.randn(2, 3, *size, dtype=torch.double)
    torch.testing.assert_close(embed_patches(projection, images), projection(images))


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_gradients_too(dtype):
    projection = nn.Conv2d(3, 8, 4, 4).to(dtype)
    images = torch.randn(2, 3, 12, 16, dtype=dtype, requires_grad=True)
    found, weights = [], torch.randn(2, 8, 3, 4, dtype=dtype)
    for embed in (projection, lambda images: embed_patches(projection, images)):
        values = (embed(images) * weights).sum()
        found.append([values, *torch.autograd.grad(values, [images, *projection.parameters()])])
    tolerance = {'rtol': 1e-5, 'atol': 1e-5} if dtype is torch.float32 else {'rtol': 0.05, 'atol': 0.2}
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, **tolerance)
