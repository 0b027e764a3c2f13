"""Schedules as functions of the iteration, what is logged, and the patience with a threshold that keeps nothing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmengine.logging import MessageHub
from mmengine.model import BaseModel
from mmengine.registry import MODEL_WRAPPERS
from torch import nn

from densevlm_mm.hooks import DecoupledLossHook
from densevlm_mm.hooks.decoupled_loss_hook import value_at
from densevlm_mm.models import DecoupledAlignmentLoss
from densevlm_mm.registry import HOOKS

RAMP = {'begin': 10, 'end': 20, 'start': 0.5, 'stop': 0.3}


class Model(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.alignment_loss = DecoupledAlignmentLoss(3)

    def forward(self, inputs) -> None:
        raise NotImplementedError


@pytest.fixture
def runner(request) -> SimpleNamespace:
    """What the hook touches of a runner."""
    hub = MessageHub.get_instance(f'{request.node.name}-hub')
    return SimpleNamespace(model=Model(), iter=0, message_hub=hub)


def outputs(kept: int = 4, things: int = 1) -> dict[str, torch.Tensor]:
    values = {'num_regions': 8, 'num_kept': kept, 'num_thing': things, 'confidence': 0.25}
    return {name: torch.tensor(float(value)) for name, value in values.items()}


def step(hook: DecoupledLossHook, runner: SimpleNamespace, iteration: int, **kept: int) -> DecoupledAlignmentLoss:
    runner.iter = iteration
    hook.before_train_iter(runner, iteration)
    hook.after_train_iter(runner, iteration, outputs=outputs(**kept))
    return runner.model.alignment_loss


@pytest.mark.parametrize(
    ('iteration', 'value'), [(0, 0.5), (10, 0.5), (11, 0.48), (15, 0.4), (19, 0.32), (20, 0.3), (10**6, 0.3)]
)
def test_ramp(iteration, value):
    assert value_at(RAMP, iteration) == pytest.approx(value)


@given(
    begin=st.integers(0, 50),
    length=st.integers(0, 50),
    start=st.floats(0, 5),
    stop=st.floats(0, 5),
    at=st.integers(0, 120),
)
def test_schedule_is_linear_between_its_ends_and_constant_outside(begin, length, start, stop, at):
    schedule = {'begin': begin, 'end': begin + length, 'start': start, 'stop': stop}
    value = value_at(schedule, at)
    slack = 1e-9
    assert min(start, stop) - slack <= value <= max(start, stop) + slack
    if at < begin or at == begin and length:
        assert value == start
    elif at >= begin + length and length:
        assert value == pytest.approx(stop)
    if begin < at < begin + length:
        middle = (value_at(schedule, at - 1) + value_at(schedule, at + 1)) / 2
        assert value == pytest.approx(middle, abs=1e-9)


def test_schedules_set_the_loss(runner):
    hook = HOOKS.build(
        {
            'type': 'densevlm_mm.DecoupledLossHook',
            'score_thr': RAMP,
            'stuff_weight': {'begin': 0, 'end': 100, 'start': 0.0, 'stop': 2.0},
        }
    )
    loss = step(hook, runner, 15)
    assert loss.score_thr == pytest.approx(0.4)
    assert loss.stuff_weight == pytest.approx(0.3)
    assert loss.thing_weight == 1.0


def test_values_depend_on_the_iteration_alone(runner):
    """As a resumed run needs it: no matter which iterations came before."""
    hook = DecoupledLossHook(score_thr=RAMP)
    uninterrupted = [step(hook, runner, i).score_thr for i in range(25)]
    resumed = DecoupledLossHook(score_thr=RAMP)
    runner.model = Model()
    assert [step(resumed, runner, i).score_thr for i in range(13, 25)] == uninterrupted[13:]


def test_model_may_be_wrapped(runner):
    @MODEL_WRAPPERS.register_module(name=f'Wrapper{id(runner)}')
    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    loss, runner.model = runner.model.alignment_loss, Wrapper(runner.model)
    hook = DecoupledLossHook(score_thr=RAMP)
    hook.before_train_iter(runner, 0)
    assert loss.score_thr == 0.5


def test_shares_and_threshold_are_logged(runner):
    hook = DecoupledLossHook(score_thr=RAMP)
    for iteration, (kept, things) in enumerate([(4, 1), (0, 0), (8, 8)]):
        step(hook, runner, iteration, kept=kept, things=things)
    logged = {
        name: runner.message_hub.get_scalar(f'train/{name}').data[0].tolist() for name in ('kept_share', 'thing_share')
    }
    assert logged == {'kept_share': [0.5, 0.0, 1.0], 'thing_share': [0.25, 0.0, 1.0]}
    assert runner.message_hub.get_scalar('train/score_thr').current() == 0.5


def test_patience_ends_when_nothing_is_kept(runner):
    hook = DecoupledLossHook(patience=3)
    for iteration, kept in enumerate([0, 0, 1, 0, 0]):
        step(hook, runner, iteration, kept=kept, things=0)
    with pytest.raises(RuntimeError, match='no region exceeded score_thr=0.3 in 3 iterations .*0.250.*: lower'):
        step(hook, runner, 5, kept=0, things=0)


def test_patience_is_that_of_all_processes(runner, monkeypatch):
    """They speak at every third step, whatever each of them kept, and end together."""
    theirs, spoken = iter([1, 0, 0]), []

    def add(kept: torch.Tensor) -> None:
        spoken.append(runner.iter)
        kept += next(theirs)

    monkeypatch.setattr('densevlm_mm.hooks.decoupled_loss_hook.all_reduce', add)
    hook = DecoupledLossHook(patience=3)
    for iteration, kept in enumerate([0, 0, 0, 1, 0, 0, 0, 0]):
        step(hook, runner, iteration, kept=kept, things=0)
    with pytest.raises(RuntimeError, match='no region exceeded'):
        step(hook, runner, 8, kept=0, things=0)
    assert spoken == [2, 5, 8]


@pytest.mark.parametrize('schedule', [{**RAMP, 'begin': 30}, {'begin': 0, 'end': 1, 'start': 1}, {**RAMP, 'strat': 1}])
def test_unusable_schedules(schedule):
    with pytest.raises(ValueError, match='thing_weight must be dict'):
        DecoupledLossHook(thing_weight=schedule)


def test_threshold_that_no_probability_exceeds(runner):
    hook = DecoupledLossHook(score_thr={**RAMP, 'stop': 1.0})
    with pytest.raises(ValueError, match='nothing is kept'):
        hook.before_train(runner)


def test_mistyped_schedule():
    with pytest.raises(TypeError, match='score_threshold'):
        DecoupledLossHook(score_threshold=RAMP)


def test_model_without_the_loss(runner):
    runner.model = nn.Linear(2, 2)
    with pytest.raises(TypeError, match='DecoupledAlignmentLoss, not Linear'):
        DecoupledLossHook().before_train_iter(runner, 0)
