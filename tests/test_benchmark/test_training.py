"""Both training steps do the same work: losses, gradients, updates; and say how long each stage took."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from torch import Tensor, nn

from densevlm_mm.benchmark.options import PROJECT
from densevlm_mm.benchmark.step import Candidate
from densevlm_mm.benchmark.training import ADAMW, CONSTRUCTOR, TrainingStep

SCHEDULE = Path(__file__).parents[2] / 'configs' / '_base_' / 'schedules' / 'densevlm_11088.py'
STAGES = ['transfer', 'teacher', 'student', 'loss', 'backward', 'optimizer', 'total']


def keep_gradients(step: TrainingStep, model: nn.Module) -> dict[str, Tensor]:
    """Run a step; the gradients by which it updated the weights."""
    kept: dict[str, Tensor] = {}

    def keep(*_: object) -> None:
        named = {name.removeprefix('vlm.'): p.grad for name, p in model.named_parameters()}
        kept.update({name: gradient.clone() for name, gradient in named.items() if gradient is not None})

    step.wrapper.optimizer.register_step_pre_hook(keep)
    step()
    return kept


@pytest.mark.parametrize('baseline', ['reference-like', 'reference-like-fused'])
def test_loss_and_gradients_are_equal(baseline, steps):
    ours, theirs = steps(baseline=baseline, batch_sizes=(3,)).values()
    mine, plain = keep_gradients(ours, ours.model), keep_gradients(theirs, theirs.student)
    assert ours.log['num_thing'] > 0
    assert ours.log['num_kept'] > ours.log['num_thing']
    assert ours.log['loss'] == pytest.approx(theirs.log['loss'], rel=1e-5)
    assert mine.keys() == plain.keys()
    for name, gradient in mine.items():
        assert (gradient - plain[name]).norm() <= 1e-5 * gradient.norm(), name


def test_weights_stay_equal_over_steps(steps):
    ours, theirs = steps().values()
    before = {name: p.clone() for name, p in theirs.student.named_parameters()}
    for _ in range(3):
        ours()
        theirs()
    after = dict(ours.model.student.named_parameters())
    moved = {name for name, p in theirs.student.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name, p in after.items() if p.requires_grad}
    for name, parameter in theirs.student.named_parameters():
        # Adam divides by the size of the gradient, which magnifies rounding where it is next to nothing
        torch.testing.assert_close(after[name], parameter, rtol=1e-4, atol=2e-6, msg=name)


def test_a_turn_begins_with_the_steps_to_settle(options, tmp_path):
    candidate = Candidate(replace(options, settle=2), PROJECT, tmp_path / 'candidate')
    taken: list[int] = []
    candidate.step = lambda: taken.append(1) or len(taken)
    assert [candidate.run(), candidate.run()] == [3, 6]


def test_stages_of_both_are_timed(steps):
    for step in steps().values():
        timing = step()
        assert list(timing) == STAGES
        assert min(timing.values()) > 0
        assert sum(timing.values()) - timing['total'] <= timing['total']


def test_loaded_batches_change_from_step_to_step_and_are_the_same_for_both(steps):
    ours, theirs = steps(load=True).values()
    logs = []
    for _ in range(2):
        assert 'load' in ours()
        assert 'load' in theirs()
        assert ours.log['loss'] == pytest.approx(theirs.log['loss'], rel=1e-3)
        logs.append(ours.log['num_regions'])
    assert logs[0] != logs[1]


def test_half_precision_stays_close(steps):
    ours, theirs = steps(dtype='bfloat16').values()
    ours()
    theirs()
    assert next(ours.model.teacher.tower.parameters()).dtype == torch.bfloat16
    assert next(theirs.teacher.parameters()).dtype == torch.float32
    assert ours.log['loss'] == pytest.approx(theirs.log['loss'], rel=0.1)


def test_a_warm_cache_gives_the_teacher_s_numbers(steps):
    ours, theirs = steps(teacher_cache='warm').values()
    ours()
    ours.model.student.load_state_dict(theirs.student.state_dict())
    ours()
    theirs()
    assert ours.log['cached_share'] == 1
    assert ours.log['loss'] == pytest.approx(theirs.log['loss'], rel=1e-2)


def test_another_vocabulary(steps):
    losses = {}
    for name, step in steps().items():
        step.set_classes(30)
        step()
        losses[name] = step.log['loss']
    assert losses.pop(PROJECT) == pytest.approx(losses.popitem()[1], rel=1e-5)


def test_the_whole_teacher_is_held_and_asks_for_gradients(steps):
    theirs = steps()['reference-like']
    assert all(p.requires_grad for p in theirs.teacher.parameters())
    assert any(name.startswith('text.') for name, _ in theirs.teacher.named_parameters())
    theirs()
    assert all(p.grad is None for p in theirs.teacher.parameters())


def test_optimiser_is_that_of_the_recipe():
    recipe = Config.fromfile(SCHEDULE).optim_wrapper
    assert {k: v for k, v in recipe.optimizer.items() if k != 'type'} == {**ADAMW, 'fused': True}
    assert recipe.optimizer.type == 'AdamW'
    assert recipe.constructor == CONSTRUCTOR


def test_the_baseline_may_have_a_dtype_of_its_own(steps):
    ours, theirs = steps(dtype='bfloat16', baseline_dtype='float32').values()
    assert next(ours.model.teacher.tower.parameters()).dtype == torch.bfloat16
    assert type(ours.wrapper).__name__ == 'AutocastOptimWrapper'
    assert type(theirs.wrapper).__name__ == 'OptimWrapper'
    ours()
    theirs()
    assert ours.log['loss'] == pytest.approx(theirs.log['loss'], rel=0.1)


def test_only_this_project_keeps_the_memory_that_it_frees(monkeypatch, tmp_path, options):
    kept = []
    monkeypatch.setattr('densevlm_mm.benchmark.step.keep_freed_memory', lambda: kept.append(True))
    Candidate(options, 'reference-like', tmp_path / 'baseline')
    assert not kept
    Candidate(options, PROJECT, tmp_path / 'project')
    assert kept
