"""Mixed precision without loss scaling, on any device."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from torch import nn

from densevlm_mm.registry import OPTIM_WRAPPERS
from densevlm_mm.vlm.factory import resolve_dtype
from densevlm_mm.vlm.towers import cpu_bfloat16


@OPTIM_WRAPPERS.register_module()
class AutocastOptimWrapper(OptimWrapper):
    """Forward passes in half precision, weights and their updates in fp32.

    For bfloat16, whose range is that of fp32, so that gradients need no scale; mmengine's ``AmpOptimWrapper`` is for
    float16, and for accelerators only.

    Args:
        dtype: Dtype of matrix products, such as 'bfloat16'.
        options: Those of ``OptimWrapper``.

    Raises:
        ValueError: If it is no floating dtype.
    """

    def __init__(self, *, dtype: str | torch.dtype = 'bfloat16', **options: Any) -> None:
        super().__init__(**options)
        self.dtype = resolve_dtype(dtype)
        if get_device() == 'cpu' and self.dtype == torch.bfloat16 and not cpu_bfloat16.CPU_MULTIPLIES_BFLOAT16:
            print_log(
                'this CPU has no instructions for bfloat16, in which a step takes many times as long as in fp32; '
                "faster is optim_wrapper.type='OptimWrapper' without dtype, and a teacher of dtype='float32'",
                logger='current',
                level=logging.WARNING,
            )

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Where the forward pass runs."""
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, dtype=self.dtype):
            yield
