"""Packed linear maps compute what plain ones do, whatever happens to their weights."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from densevlm_mm.vlm.towers.cpu_bfloat16 import CPU_MULTIPLIES_BFLOAT16
from densevlm_mm.vlm.towers.packed_linear import PackedLinear, pack_linears

if not CPU_MULTIPLIES_BFLOAT16:
    pytest.skip('this CPU has no products in bfloat16', allow_module_level=True)


def plain_and_packed(bias: bool = True, in_features: int = 40) -> tuple[nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    plain = nn.Linear(in_features, 24, bias=bias).bfloat16()
    packed = nn.Sequential(copy.deepcopy(plain))
    pack_linears(packed)
    assert type(packed[0]) is PackedLinear
    return plain, packed[0]


def agree(plain: nn.Linear, packed: nn.Linear, *shape: int) -> None:
    x = torch.randn(*shape, plain.in_features).to(plain.weight.dtype)
    with torch.no_grad():
        torch.testing.assert_close(packed(x), plain(x), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('shape', [(1,), (7,), (2, 5), (2, 3, 4)])
def test_same_products(shape, bias):
    plain, packed = plain_and_packed(bias)
    agree(plain, packed, *shape)
    assert packed._remembered is not None
    agree(plain, packed, 33)  # with another number of rows than it was packed for


@pytest.mark.parametrize('bias', [True, False])
def test_wide_ones_are_not_packed(bias):
    plain, wide = plain_and_packed(bias, in_features=1025)
    agree(plain, wide, 2, 5)
    assert wide._remembered is None


def test_weights_may_change():
    plain, packed = plain_and_packed()
    agree(plain, packed, 5)
    other = nn.Linear(40, 24).bfloat16()
    packed.load_state_dict(other.state_dict())
    agree(other, packed, 5)
    with torch.no_grad():
        packed.weight.mul_(3)
        other.weight.mul_(3)
    agree(other, packed, 5)
    packed.weight = plain.weight
    packed.bias = plain.bias
    agree(plain, packed, 5)


def test_copies_casts_and_gradients_are_those_of_a_linear_map():
    plain, packed = plain_and_packed()
    agree(plain, packed, 5)
    assert packed.state_dict().keys() == plain.state_dict().keys()
    duplicate = copy.deepcopy(packed)
    assert duplicate._remembered is None
    agree(plain, duplicate, 5)
    x = torch.randn(5, 40)
    assert torch.equal(packed(x.bfloat16()), plain(x.bfloat16()))  # gradients are on
    with torch.no_grad():
        assert torch.equal(packed.float()(x), plain.float()(x))


def test_only_plain_ones_are_packed():
    class Other(nn.Linear):
        pass

    modules = nn.ModuleList([nn.Linear(4, 2), Other(4, 2), nn.MultiheadAttention(8, 2)])
    pack_linears(modules)
    assert [type(module) for module in modules[:2]] == [PackedLinear, Other]
    assert not any(type(module) is PackedLinear for module in modules[2].modules())
