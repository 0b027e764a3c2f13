"""A checkpoint says what model it is of, and in which dense mode it was trained."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn

from densevlm_mm.registry import HOOKS
from densevlm_mm.vlm import VLM
from densevlm_mm.vlm.checkpoint_formats import model_meta
from densevlm_mm.vlm.checkpoints import META_KEY


@HOOKS.register_module()
class VLMMetaHook(Hook):
    """Store what model it is of in every checkpoint: arch, dense mode, mean and std of its images, method, version.

    `load_vlm` then takes the dense mode from the file, and whoever loads the weights into a model with another one is
    warned. Models that hold no `VLM` under ``vlm`` are left alone.
    """

    priority = 'NORMAL'

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Refuse a file, to resume or to start from, whose weights would be left out or run in another dense mode.

        Raises:
            ValueError: If it is one.
        """
        vlm = _vlm_of(runner)
        if vlm is None:
            return
        state = checkpoint.get('state_dict', checkpoint)
        if not any(key.removeprefix('module.').startswith('vlm.') for key in state):
            raise ValueError(
                'load_from takes training checkpoints of this package only, and this is none: give the file as '
                "`checkpoint` of the config's student or vlm"
            )
        stored = (checkpoint.get('meta') or {}).get(META_KEY) or {}
        if stored.get('dense_mode', vlm.dense_mode) != vlm.dense_mode:
            raise ValueError(
                f'the checkpoint was trained in dense mode {stored["dense_mode"]!r}, but the config says '
                f"{vlm.dense_mode!r}: give dense_mode='{stored['dense_mode']}' there"
            )

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Add the entry."""
        vlm = _vlm_of(runner)
        if vlm is not None:
            method = type(_unwrapped(runner)).__name__
            mean, std = getattr(_unwrapped(runner), 'pixels', (vlm.visual.mean, vlm.visual.std))
            facts = {'mean': mean, 'std': std, 'method': method}
            checkpoint['meta'][META_KEY] = model_meta(vlm.config, dense_mode=vlm.dense_mode, **facts)


def _unwrapped(runner: Runner) -> nn.Module:
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def _vlm_of(runner: Runner) -> VLM | None:
    vlm = getattr(_unwrapped(runner), 'vlm', None)
    return vlm if isinstance(vlm, VLM) else None
