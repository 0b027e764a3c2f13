"""Attention chooses what is fast, and computes what PyTorch's does."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from densevlm_mm.vlm.towers import attention, cpu_bfloat16
from densevlm_mm.vlm.towers.attention import align_keys, attend


@pytest.fixture(autouse=True)
def cpu_multiplies_bfloat16(monkeypatch) -> None:
    monkeypatch.setattr(cpu_bfloat16, 'CPU_MULTIPLIES_BFLOAT16', True)


def heads(length: int, dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    """Queries, keys and values."""
    generator = torch.Generator().manual_seed(0)
    return list(torch.randn(3, 1, 2, length, 16, generator=generator).to(dtype).unbind())


@pytest.mark.parametrize('dtype', [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize('trains', [True, False])
def test_other_numbers_are_left_to_pytorch(dtype, trains):
    q, k, v = (x.requires_grad_(trains) for x in heads(40, dtype))
    assert torch.equal(attend(q, k, v), F.scaled_dot_product_attention(q, k, v))


def test_only_what_trains_is_attended_by_products(monkeypatch):
    monkeypatch.setattr(attention, 'attend_by_products', lambda q, k, v: 'products')
    q, k, v = heads(64)
    assert attend(q, k, v.requires_grad_()) == 'products'
    with torch.no_grad():
        assert torch.equal(attend(q, k, v), F.scaled_dot_product_attention(q, k, v))


@pytest.mark.parametrize('trains', [True, False])
def test_without_instructions_for_it_bfloat16_is_left_to_pytorch(trains, monkeypatch):
    monkeypatch.setattr(cpu_bfloat16, 'CPU_MULTIPLIES_BFLOAT16', False)
    called = {}
    monkeypatch.setattr(F, 'scaled_dot_product_attention', lambda *args, **kwargs: called.update(kwargs) or args)
    q, k, v = (x.requires_grad_(trains) for x in heads(40))
    assert attend(q, k, v) == (q, k, v)
    assert called == dict(attn_mask=None)


@pytest.mark.parametrize(('length', 'aligned'), [(40, 64), (512 + 40, 512 + 64), (512 + 9, 512 + 9), (64, 64)])
def test_appended_keys_are_not_seen(length, aligned):
    q, k, v = heads(length)
    keys, values, mask = align_keys(k, v)
    assert keys.shape[2] == values.shape[2] == aligned
    assert (mask is None) == (aligned == length)
    with torch.no_grad():
        mixed = attend(q, k, v)
    torch.testing.assert_close(mixed, F.scaled_dot_product_attention(q, k, v), rtol=2e-2, atol=1e-3)
