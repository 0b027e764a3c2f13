"""Two groups of parameters, with weight decay and without."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS, OPTIMIZERS
from timm.optim import param_groups_weight_decay
from torch import nn

from densevlm_mm.models.sharded import trainable_parameters
from densevlm_mm.registry import OPTIM_WRAPPER_CONSTRUCTORS


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class DecayGroups:
    """Build the optimiser with weight decay for matrices, and none for vectors and scalars.

    That is the reference's rule. mmengine's constructor can express most of it, but makes a group of every tensor, and
    an optimiser then updates hundreds of tensors one by one instead of all together.

    Args:
        optim_wrapper_cfg: Config of the optimiser wrapper, with ``optimizer``.
        paramwise_cfg: Must be None: there is nothing to set.

    Raises:
        ValueError: If it is not.
    """

    def __init__(self, optim_wrapper_cfg: Mapping[str, Any], paramwise_cfg: Mapping[str, Any] | None = None) -> None:
        if paramwise_cfg:
            raise ValueError(
                f'DecayGroups takes no paramwise_cfg, got {dict(paramwise_cfg)}; remove it, or '
                "optim_wrapper.constructor for mmengine's own"
            )
        self.optim_wrapper_cfg = optim_wrapper_cfg

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Optimiser wrapper of the parameters that train."""
        wrapper = {'type': 'OptimWrapper', **self.optim_wrapper_cfg}
        optimizer = dict(wrapper.pop('optimizer'))
        # each of them whole, where FSDP otherwise shows nothing but vectors
        parameters = SimpleNamespace(named_parameters=lambda: trainable_parameters(model))
        groups = param_groups_weight_decay(parameters, optimizer.pop('weight_decay', 0.0))
        wrapper['optimizer'] = OPTIMIZERS.build({**optimizer, 'params': groups})
        return OPTIM_WRAPPERS.build(wrapper)
