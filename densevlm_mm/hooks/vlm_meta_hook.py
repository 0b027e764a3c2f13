"""A checkpoint says what model it is of, and in which dense mode it was trained."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

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

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Add the entry."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        vlm = getattr(model, 'vlm', None)
        if isinstance(vlm, VLM):
            facts = {'mean': vlm.visual.mean, 'std': vlm.visual.std, 'method': type(model).__name__}
            checkpoint['meta'][META_KEY] = model_meta(vlm.config, dense_mode=vlm.dense_mode, **facts)
