from __future__ import annotations

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from torch import nn

ADAMW = {'type': 'AdamW', 'lr': 0.1, 'weight_decay': 0.5}


class Model(nn.Module):
    """A matrix, vectors, a scalar, and something frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 3), nn.LayerNorm(3)
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.frozen = nn.Linear(3, 3).requires_grad_(False)

    def forward(self, inputs):
        return self.scale * self.frozen(self.norm(self.linear(inputs)))


def build(model: nn.Module, **options):
    return build_optim_wrapper(model, {'constructor': 'densevlm_mm.DecayGroups', 'optimizer': ADAMW, **options})


def test_matrices_decay_and_nothing_else_does():
    model = Model()
    wrapper = build(model, clip_grad={'max_norm': 1.0})
    groups = {group['weight_decay']: group['params'] for group in wrapper.optimizer.param_groups}
    assert [id(p) for p in groups[0.5]] == [id(model.linear.weight)]
    assert {id(p) for p in groups[0.0]} == {id(p) for p in (model.linear.bias, *model.norm.parameters(), model.scale)}
    assert wrapper.clip_grad_kwargs == {'max_norm': 1.0}


def test_steps_are_those_of_a_group_per_tensor():
    torch.manual_seed(0)
    model = Model()
    model.scale.requires_grad_(False)  # the one tensor that mmengine's constructor would let decay
    other = Model()
    other.load_state_dict(model.state_dict())
    other.scale.requires_grad_(False)
    per_tensor = {'norm_decay_mult': 0.0, 'bias_decay_mult': 0.0, 'flat_decay_mult': 0.0}
    theirs = build_optim_wrapper(other, {'optimizer': ADAMW, 'paramwise_cfg': per_tensor})
    ours = build(model)
    for _ in range(3):
        inputs = torch.randn(5, 4)
        for wrapper, net in ((ours, model), (theirs, other)):
            wrapper.update_params(net(inputs).square().mean())
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_what_it_cannot_do_is_refused():
    with pytest.raises(ValueError, match='paramwise_cfg'):
        build(Model(), paramwise_cfg={'bias_decay_mult': 0.0})
