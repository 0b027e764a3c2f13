"""Weights into a runner's model."""

from __future__ import annotations

from copy import deepcopy

from mmengine.config import Config
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner, load_checkpoint
from torch import nn

from densevlm_mm.models import VLMModel
from densevlm_mm.registry import MODELS
from densevlm_mm.vlm import CheckpointError, read_meta


def load_weights(runner: Runner, checkpoint: str) -> None:
    """Load a checkpoint strictly.

    Region models (`densevlm_mm.models.RegionModel`) take every format that `load_vlm` takes; other models a checkpoint
    of mmengine.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If keys are missing, unexpected or of another shape, or the file holds code.
    """
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    load_model_weights(model, checkpoint)
    runner.logger.info(f'loaded {checkpoint}')


def load_model_weights(model: nn.Module, checkpoint: str) -> None:
    """Load a checkpoint strictly into a model that is no runner's; see `load_weights`."""
    if hasattr(model, 'load_weights'):
        model.load_weights(checkpoint)
        return
    meta = read_meta(checkpoint)  # refuses code, which mmengine would run
    try:
        # not by the runner, whose hooks expect a run: EMAHook has no average yet, and takes these weights when it has
        load_checkpoint(model, checkpoint, map_location='cpu', strict=True)
    except RuntimeError as error:
        raise CheckpointError(
            f'{checkpoint} does not fit this {type(model).__name__}. {str(error).strip()}\n'
            'Give the config that it was trained with; tools/misc/describe_checkpoint.py tells what the file holds.'
        ) from error
    if hasattr(model, 'adopt_normalization'):
        model.adopt_normalization(meta)


def leave_to_weights(config: Config, weights: str) -> Config:
    """A copy of a config whose CLIP does without a file of its own, since its weights are in that of the whole model.

    The CLIP has the dense mode that the file names, unless the config names one. Configs without a CLIP stay as they
    are.
    """
    config = deepcopy(config)
    if 'vlm' in config.model:
        vlm = config.model.vlm
        vlm.checkpoint = None
        vlm.dense_mode = vlm.get('dense_mode') or read_meta(weights).get('dense_mode')
    return config


def start_from(cfg: Config) -> None:
    """Turn ``load_from`` into the checkpoint of the model that trains, where there is a student or a `VLM`.

    mmengine would load it loosely, and after teacher and class embeddings were made of other weights. A run that
    resumes is left alone.
    """
    model = cfg.get('model', {})
    part = next((name for name in ('student', 'vlm') if name in model), None)
    if part is None or not cfg.get('load_from') or cfg.get('resume'):
        return
    kind = MODELS.get(model.type)  # None if there is no such type, which whoever builds the model will say
    if kind is not None and issubclass(kind, VLMModel):  # others, such as CAT-Seg, have more to load than their VLM
        cfg.model[part].checkpoint, cfg.load_from = cfg.load_from, None
