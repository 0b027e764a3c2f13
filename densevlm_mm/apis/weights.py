"""Weights into a runner's model."""

from __future__ import annotations

from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from densevlm_mm.vlm import read_state_dict


def load_weights(runner: Runner, checkpoint: str) -> None:
    """Load a checkpoint strictly.

    Region models (`densevlm_mm.models.RegionModel`) take every format that `load_vlm` takes; other models a checkpoint
    of mmengine.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError, RuntimeError: If keys are missing, unexpected or of another shape, or the file holds code.
    """
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    if hasattr(model, 'load_weights'):
        model.load_weights(checkpoint)
        runner.logger.info(f'loaded {checkpoint}')
    else:
        read_state_dict(checkpoint)  # refuses code, which mmengine would run
        runner.load_checkpoint(checkpoint, strict=True)
