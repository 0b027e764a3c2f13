"""Weight ensembling: what is saved and evaluated is a blend of the student and the model it started from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel, StateDictType

from densevlm_mm.models.sharded import trainable_parameters
from densevlm_mm.registry import HOOKS
from densevlm_mm.vlm.checkpoints import read_content

_RAW = 'raw_trainable'  # entry of the checkpoint with the weights as trained


@HOOKS.register_module()
class WeightEnsembleHook(Hook):
    """Blend ``alpha * student + (1 - alpha) * original`` for saving and for evaluation during training.

    Training goes on from the raw student. A checkpoint holds the blend under ``state_dict``, ready for use, and the raw
    trainable weights beside it, so that resuming is exact; starting another run from the file takes the blend.
    Parameters that do not train are equal in both and left alone. Under FSDP every process remembers all that do train,
    on the host.

    Args:
        alpha: Share of the trained weights, in 0..1 (Wortsman et al., arXiv:2109.01903; 0.9 in DenseVLM's recipe).

    Raises:
        ValueError: If it lies outside.
    """

    priority = 'NORMAL'

    def __init__(self, alpha: float) -> None:
        if not 0 <= alpha <= 1:
            raise ValueError(f'alpha must be in 0..1, got {alpha}')
        self.alpha = alpha
        self.original: dict[str, Tensor] = {}
        self._raw: dict[str, Tensor] = {}
        self._began = self._trains = self._took_raw = self._came_resumed = False

    def before_run(self, runner: Runner) -> None:
        """Remember the weights that training starts from (those of the model's own checkpoint, also when resuming).

        Raises:
            ValueError: If a trainable parameter is not in checkpoints under its own name.
        """
        # with resume=True, iterations and weights of the file come after this moment or by `after_load_checkpoint`
        self._came_resumed = runner.iter > 0 and not self._began and not self._took_raw
        self._trains = False  # a run that failed in training did not say so
        self._remember(runner.model)

    def before_train(self, runner: Runner) -> None:
        """Blend from here on.

        Raises:
            RuntimeError: If the run was resumed before this hook saw the model's own weights.
        """
        if self._came_resumed:
            raise RuntimeError(
                'WeightEnsembleHook cannot go on from Runner.resume: the blend is loaded before it sees what that is a '
                "blend with; resume by resume=True, load_from='...' of the runner or its config"
            )
        self._began = self._trains = True

    def after_train(self, runner: Runner) -> None:
        """Leave evaluations after training as they are."""
        self._trains = False

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Put the blend into the checkpoint, and the raw weights beside it."""
        if isinstance(runner.model, FullyShardedDataParallel) and not is_main_process():
            return  # what this process has of it is not written
        raw = {name: checkpoint['state_dict'][name] for name in self.original}
        checkpoint[_RAW] = raw
        checkpoint['state_dict'].update({name: self._blend(name, value) for name, value in raw.items()})

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """When resuming, go on from the raw weights.

        Raises:
            RuntimeError: If the checkpoint has none, having been written without this hook.
        """
        if not runner._resume:
            return
        if _RAW not in checkpoint:
            raise RuntimeError(
                'the checkpoint to resume holds no raw weights: it was written without WeightEnsembleHook; resume it '
                'with the config it was trained with'
            )
        self._remember(runner.model)  # a FlexibleRunner resumes before it runs
        checkpoint['state_dict'].update(checkpoint[_RAW])
        self._took_raw = True

    def before_val_epoch(self, runner: Runner) -> None:
        """Evaluate the blend; outside training the model is what a file holds, which is one already."""
        if not self._trains:
            return
        self._raw = _snapshot(runner.model)
        _restore(runner.model, {name: self._blend(name, value) for name, value in self._raw.items()})

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Give training its own weights back, bit for bit."""
        if not self._trains:
            return
        _restore(runner.model, self._raw)
        self._raw = {}

    def _remember(self, model: nn.Module) -> None:
        if not self.original:
            self.original = _snapshot(model)
            _check_names(model, self.original)

    def _blend(self, name: str, raw: Tensor) -> Tensor:
        original = self.original[name].to(raw.device)
        return self.alpha * raw + (1 - self.alpha) * original


def read_raw_weights(path: str | Path) -> dict[str, Tensor]:
    """Weights as trained, not blended, of a checkpoint file, under the names of its `VLM`.

    Empty for a file that was written without :class:`WeightEnsembleHook`.
    """
    content = read_content(Path(path))
    raw = content.get(_RAW, {}) if isinstance(content, Mapping) else {}
    return {name.removeprefix('vlm.'): value for name, value in raw.items()}


def _snapshot(model: nn.Module) -> dict[str, Tensor]:
    host = isinstance(model, FullyShardedDataParallel)  # there is no room for it where weights are spread
    return {name: p.detach().to('cpu' if host else p.device, copy=True) for name, p in trainable_parameters(model)}


def _check_names(model: nn.Module, names: Iterable[str]) -> None:
    if isinstance(model, FullyShardedDataParallel):
        if model.get_state_dict_type(model).state_dict_type != StateDictType.FULL_STATE_DICT:
            raise ValueError("WeightEnsembleHook writes whole checkpoints: set strategy.state_dict_cfg='full'")
        return
    model = model.module if is_model_wrapper(model) else model
    hidden = sorted(set(names) - set(model.state_dict()))
    if hidden:
        raise ValueError(
            f'WeightEnsembleHook cannot blend {len(hidden)} trainable parameters that checkpoints do not hold by name, '
            f"such as {hidden[0]}: leave the hook out, or train fused projections whole (CATSeg: 'in_proj', not 'qv')"
        )


@torch.no_grad()
def _restore(model: nn.Module, values: dict[str, Tensor]) -> None:
    for name, parameter in trainable_parameters(model, writes=True):
        parameter.copy_(values[name])
