"""Rotary attention is timm's, bit for bit where no sums are taken in another order."""

from __future__ import annotations

import pytest
import torch
from timm.layers import apply_rot_embed_cat
from timm.models.eva import EvaAttention
from torch import Tensor

from densevlm_mm.vlm.positions import rotary_table, token_rotations
from densevlm_mm.vlm.towers.rotary_attention import RotaryAttention, rotate, rotate_halves

GRID, HEAD_DIM = (5, 3), 16
PLACE = GRID, HEAD_DIM, 4, torch.device('cpu')


def timm_rotation(heads: Tensor) -> Tensor:
    """Of ``(B, L, heads, head_dim)``, the class token aside."""
    heads = heads.transpose(1, 2)
    patches = apply_rot_embed_cat(heads[:, :, 1:], rotary_table(*PLACE))
    return torch.cat([heads[:, :, :1], patches], 2).type_as(heads).transpose(1, 2)


def in_halves(heads: Tensor) -> Tensor:
    return heads.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_rotations_are_those_of_timm(dtype):
    heads = torch.randn(2, 16, 3, HEAD_DIM).to(dtype)
    turned = rotate(heads, token_rotations(*PLACE))
    assert turned.dtype == dtype
    expected = timm_rotation(heads)
    tolerance = {'rtol': 1e-6 if dtype.itemsize > 2 else 0, 'atol': 1e-7}
    torch.testing.assert_close(turned, expected, **tolerance)
    torch.testing.assert_close(
        rotate_halves(in_halves(heads), token_rotations(*PLACE)), in_halves(expected), **tolerance
    )
    assert torch.equal(turned[:, 0], heads[:, 0])


@pytest.mark.parametrize('compiling', [True, False])
@pytest.mark.parametrize('biases', [True, False])
def test_attention_and_its_gradients_are_those_of_timm(biases, compiling, monkeypatch):
    attention = EvaAttention(48, 3, qkv_fused=False, qkv_bias=biases, norm_layer=torch.nn.LayerNorm)
    tokens = torch.randn(2, 16, 48, requires_grad=True)
    outcomes = []
    for kind, rope in ((EvaAttention, rotary_table(*PLACE)), (RotaryAttention, token_rotations(*PLACE))):
        attention.__class__ = kind
        monkeypatch.setattr(torch.compiler, 'is_compiling', lambda: compiling)
        mixed = attention(tokens, rope=rope)
        outcomes.append([mixed, *torch.autograd.grad(mixed.square().mean(), [tokens, *attention.parameters()])])
    for ours, theirs in zip(*outcomes, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_wrapped_projection_is_called_in_compiled_code_too(monkeypatch):
    """As adapters wrap one of the two, whose channels must stay in the order of the other's."""
    attention = EvaAttention(48, 3, qkv_fused=False, norm_layer=torch.nn.LayerNorm)
    attention.__class__ = RotaryAttention
    attention.q_proj = torch.nn.Sequential(attention.q_proj, torch.nn.Linear(48, 48))
    tokens, rope = torch.randn(2, 16, 48), token_rotations(*PLACE)
    expected = attention(tokens, rope=rope)
    monkeypatch.setattr(torch.compiler, 'is_compiling', lambda: True)
    torch.testing.assert_close(attention(tokens, rope=rope), expected)
