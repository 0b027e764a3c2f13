"""Norms before matrix products: cast once, or folded into the product."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from densevlm_mm.vlm.towers import EvaTower
from densevlm_mm.vlm.towers.norms import FoldedNorm, ProductNorm, pad_to_alignment

# hidden channels are 106 after the MLP's ratio: no multiple of the alignment, like ViT-L's 2,730
CONFIG = {
    'image_size': 32, 'patch_size': 8, 'width': 40, 'layers': 3, 'head_width': 20, 'mlp_ratio': 2.6667,
    'rope': True, 'naiveswiglu': True, 'subln': True,
}  # fmt: skip


def norm_and_linear(features: int, out: int) -> nn.Sequential:
    norm, linear = nn.LayerNorm(features), nn.Linear(features, out)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return nn.Sequential(norm, linear).requires_grad_(False)


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


@given(features=st.integers(2, 200), out=st.integers(1, 9), mean=st.floats(-3, 3))
def test_a_folded_norm_is_norm_and_product(features, out, mean):
    torch.manual_seed(features)
    plain = norm_and_linear(features, out).double()
    x = torch.randn(2, 3, features, dtype=torch.float64) + mean
    folded = FoldedNorm(*plain)
    torch.testing.assert_close(folded(x), plain(x))
    padded = pad_to_alignment(x, 2)
    assert features <= 64 or padded.shape[-1] % 64 == 0
    torch.testing.assert_close(folded(padded), plain(x))


def test_in_fp32_too():
    plain = norm_and_linear(700, 50)
    x = torch.randn(20, 700)
    assert relative(FoldedNorm(*plain)(x), plain(x)) < 2e-6


def test_values_that_half_precision_could_not_multiply():
    plain = norm_and_linear(512, 8)
    x = 2000 * torch.randn(6, 512)
    folded = FoldedNorm(*plain).half()
    assert relative(folded(x.half()), plain(x)) < 5e-3


@pytest.mark.parametrize('autocast', [True, False])
def test_a_norm_before_products_is_cast_once(autocast):
    norm, x = ProductNorm(8), torch.randn(2, 8)
    with torch.autocast('cpu', dtype=torch.bfloat16, enabled=autocast):
        assert norm(x).dtype == (torch.bfloat16 if autocast else torch.float32)
        assert norm.double()(x.double()).dtype == torch.float64


@pytest.mark.parametrize('mode', ['value', 'vanilla', 'csa'])
def test_a_folded_tower_computes_the_same(mode):
    torch.manual_seed(0)
    tower = EvaTower(24, CONFIG).eval()
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    images = torch.randn(2, 3, 40, 24)
    expected = tower.encode_dense(images, mode).detach()
    tower.fold()
    assert tower.blocks[0].mlp.fc1_g.out_features == 106
    assert len(tower.blocks[0].mlp.fc1_g.weight) == 128
    assert not any(parameter.requires_grad for parameter in tower.parameters())
    assert relative(tower.encode_dense(images, mode), expected) < 2e-6
