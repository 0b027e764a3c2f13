"""Schedules of the decoupled loss, and a watch on what the retrieval keeps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from densevlm_mm.models import DecoupledAlignmentLoss
from densevlm_mm.registry import HOOKS

_SCHEDULE_KEYS = {'begin', 'end', 'start', 'stop'}


@HOOKS.register_module()
class DecoupledLossHook(Hook):
    """Set threshold and weights of `DecoupledAlignmentLoss` per iteration; log kept regions, thing share, confidence.

    A schedule is ``dict(begin=0, end=1000, start=0.5, stop=0.3)``: linear from `start` at iteration `begin` to `stop`
    at `end`, constant before and after. It depends on the iteration alone, so a resumed run goes on exactly.

    Args:
        score_thr: Schedule of the retrieval threshold; None leaves the loss's own value.
        thing_weight: Schedule of the thing term's weight, or None.
        stuff_weight: Schedule of the stuff term's weight, or None.
        patience: Stop with an error when no process kept a region in so many iterations; looked at whenever so many
            are over, for only then the processes tell each other.

    Raises:
        ValueError: For a schedule with missing or unknown keys, or one that runs backwards.
    """

    priority = 'VERY_HIGH'  # before the runtime hook reads the log

    def __init__(
        self,
        score_thr: Mapping[str, float] | None = None,
        thing_weight: Mapping[str, float] | None = None,
        stuff_weight: Mapping[str, float] | None = None,
        patience: int = 100,
    ) -> None:
        given = dict(score_thr=score_thr, thing_weight=thing_weight, stuff_weight=stuff_weight)
        self.schedules = {name: dict(schedule) for name, schedule in given.items() if schedule is not None}
        for name, schedule in self.schedules.items():
            if set(schedule) != _SCHEDULE_KEYS or schedule['begin'] > schedule['end']:
                raise ValueError(f'{name} must be dict(begin=, end=, start=, stop=) with begin <= end, got {schedule}')
        self.patience = patience
        self._kept = self._iterations = 0

    def before_train(self, runner: Runner) -> None:
        """Check that the loss takes both ends of every schedule, rather than find out at the end of a long ramp.

        Raises:
            ValueError: If it does not.
        """
        loss = _alignment_loss(runner)
        for name, schedule in self.schedules.items():
            for end in ('stop', 'start'):
                setattr(loss, name, schedule[end])

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Set this iteration's threshold and weights."""
        loss = _alignment_loss(runner)
        for name, schedule in self.schedules.items():
            setattr(loss, name, value_at(schedule, runner.iter))

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Mapping[str, Any] | None = None
    ) -> None:
        """Log what the retrieval kept.

        Raises:
            RuntimeError: On every process alike, if nothing passed the threshold for `patience` iterations.
        """
        regions, kept, things = (float(outputs[key]) for key in ('num_regions', 'num_kept', 'num_thing'))
        hub = runner.message_hub
        hub.update_scalar('train/kept_share', kept / max(regions, 1))
        hub.update_scalar('train/thing_share', things / max(kept, 1))
        hub.update_scalar('train/score_thr', _alignment_loss(runner).score_thr)
        self._kept += kept
        self._iterations += 1
        if self._iterations >= self.patience:
            self._check_kept(runner, float(outputs['confidence']))

    def _check_kept(self, runner: Runner, confidence: float) -> None:
        # one process may see only images without a confident region, and must not end the run of the others
        kept = torch.tensor(float(self._kept))
        all_reduce(kept)
        self._kept = self._iterations = 0
        if not kept:
            raise RuntimeError(
                f'no region exceeded score_thr={_alignment_loss(runner).score_thr} in {self.patience} iterations '
                f"(mean retrieval confidence {confidence:.3f}): lower model.loss.score_thr, or check the teacher's "
                'checkpoint and logit_scale'
            )


def value_at(schedule: Mapping[str, float], iteration: int) -> float:
    """Value of a linear schedule at an iteration."""
    begin, end = schedule['begin'], schedule['end']
    progress = min(max((iteration - begin) / max(end - begin, 1), 0.0), 1.0)
    return schedule['start'] + progress * (schedule['stop'] - schedule['start'])


def _alignment_loss(runner: Runner) -> DecoupledAlignmentLoss:
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    loss = getattr(model, 'alignment_loss', None)
    if not isinstance(loss, DecoupledAlignmentLoss):
        raise TypeError(f'DecoupledLossHook needs a model with a DecoupledAlignmentLoss, not {type(model).__name__}')
    return loss
