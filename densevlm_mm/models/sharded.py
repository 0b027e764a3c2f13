"""A student whose weights, gradients and optimiser states are spread over all processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmengine.device import get_device
from mmengine.model import MMFullyShardedDataParallel, is_model_wrapper
from mmengine.optim import OptimWrapper
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from densevlm_mm.registry import MODEL_WRAPPERS

from .vlm_model import VLMModel

_WRAPPED = '_fsdp_wrapped_module.'  # in the names of whatever lies below an FSDP module


@MODEL_WRAPPERS.register_module()
class ShardedDataParallel(MMFullyShardedDataParallel):
    """mmengine's FSDP, with the image blocks of a model's CLIP as units.

    The last block stays with the rest of the model: dense modes call its parts one by one, which would find nothing but
    shards. Scalars, which PyTorch does not shard, stay whole.

    Args:
        module: Model.
        options: Those of `torch.distributed.fsdp.FullyShardedDataParallel`.
    """

    def __init__(self, module: VLMModel, **options: Any) -> None:
        units = set(module.vlm.visual.blocks[:-1])
        defaults = {
            'auto_wrap_policy': lambda module, recurse, **_: recurse or module in units,
            'ignored_states': [parameter for parameter in module.parameters() if parameter.ndim == 0],
            'use_orig_params': True,  # some train and some do not
        }
        super().__init__(module, **{**defaults, **options})
        if getattr(module, 'teacher', None) is not None:
            module.teacher.to(get_device())  # it goes where its student is sent, but FSDP sends weight by weight

    def train_step(self, data: dict, optim_wrapper: OptimWrapper) -> dict[str, Tensor]:
        """One step, see `mmengine.model.BaseModel`.

        Raises:
            ValueError: If gradients are to be clipped, for which each process would take the norm of its own part.
        """
        if optim_wrapper.clip_grad_kwargs:
            raise ValueError('no process of FSDP knows the norm of all gradients: remove optim_wrapper.clip_grad')
        return super().train_step(data, optim_wrapper)


def trainable_parameters(model: nn.Module, *, writes: bool = False) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters that train, by their names in checkpoints; under FSDP each is whole while it is the current one.

    All processes have to go through them together, to the end.

    Args:
        model: Model, in a wrapper or not.
        writes: Whether what the caller writes to them is to stay.
    """
    if not isinstance(model, FullyShardedDataParallel):
        model = model.module if is_model_wrapper(model) else model
        yield from ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
        return
    for path, unit in model.named_modules():
        if isinstance(unit, FullyShardedDataParallel):
            path = f'{path}.'.replace(_WRAPPED, '').lstrip('.')
            with FullyShardedDataParallel.summon_full_params(unit, recurse=False, writeback=writes):
                for name, parameter in unit.module.named_parameters():
                    if parameter.requires_grad and _WRAPPED not in name:
                        yield path + name, parameter
