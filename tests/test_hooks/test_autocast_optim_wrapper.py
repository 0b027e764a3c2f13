from __future__ import annotations

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from torch import nn

from densevlm_mm.hooks import autocast_optim_wrapper
from densevlm_mm.vlm.towers import cpu_bfloat16


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16))


def build(model: nn.Module, **options):
    config = {'type': 'densevlm_mm.AutocastOptimWrapper', 'optimizer': {'type': 'SGD', 'lr': 0.5}, **options}
    return build_optim_wrapper(model, config)


def test_products_run_in_half_precision_and_weights_stay_whole(model):
    wrapper, before = build(model), model[0].weight.detach().clone()
    with wrapper.optim_context(model):
        products = model[0](torch.randn(4, 16))
        loss = model[1](products).float().square().sum()
    assert products.dtype == torch.bfloat16
    wrapper.update_params(loss)
    assert model[0].weight.dtype == torch.float32
    assert not torch.equal(model[0].weight, before)
    assert model[0](torch.randn(4, 16)).dtype == torch.float32


def test_options_are_those_of_the_plain_wrapper(model):
    assert build(model, clip_grad={'max_norm': 1.0}).clip_grad_kwargs == {'max_norm': 1.0}
    with pytest.raises(ValueError, match='int8'):
        build(model, dtype='int8')


@pytest.mark.parametrize(
    ('device', 'instructions', 'dtype', 'warns'),
    [
        ('cpu', False, 'bfloat16', True),
        ('cpu', True, 'bfloat16', False),
        ('cuda', False, 'bfloat16', False),
        ('cpu', False, 'float16', False),
    ],
)
def test_a_cpu_to_which_bfloat16_is_a_burden_is_warned_of(model, monkeypatch, device, instructions, dtype, warns):
    monkeypatch.setattr(cpu_bfloat16, 'CPU_MULTIPLIES_BFLOAT16', instructions)
    monkeypatch.setattr(autocast_optim_wrapper, 'get_device', lambda: device)
    said = []
    monkeypatch.setattr(autocast_optim_wrapper, 'print_log', lambda message, **_: said.append(message))
    build(model, dtype=dtype)
    assert [('fp32' in message) for message in said] == [True] * warns
