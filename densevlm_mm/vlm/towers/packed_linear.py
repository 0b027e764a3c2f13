"""Linear maps whose weights are laid out once for the products they take part in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from . import cpu_bfloat16

# With more input features oneDNN's packed products are the slower ones: at the 1,297 tokens of ViT-L/14 on 512 px.
_MAX_PACKED_FEATURES = 1024


class PackedLinear(nn.Linear):
    """Linear map that, where it runs without gradients in bfloat16 on a CPU, remembers its weight as oneDNN wants it.

    Otherwise oneDNN lays the weight out in every product, which takes up to a third of the time. The remembered copy is
    no part of the state, and made anew for a weight that was moved, cast, replaced or written to. A weight with many
    input features is not packed; its product still adds the bias itself, where PyTorch first writes it to the result.
    """

    _remembered: tuple[Tensor, int, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """``(..., in_features) -> (..., out_features)``."""
        if torch.is_grad_enabled() or not x.dtype == self.weight.dtype == torch.bfloat16 or x.device.type != 'cpu':
            return super().forward(x)
        weight = self._packed(x[..., 0].numel()) if self.in_features <= _MAX_PACKED_FEATURES else self.weight
        return torch.ops.mkldnn._linear_pointwise(x, weight, self.bias, 'none', [], '')

    def _packed(self, rows: int) -> Tensor:
        weight = self.weight.detach()
        if self._remembered is not None:
            source, version, packed = self._remembered
            if (source.data_ptr(), version) == (weight.data_ptr(), weight._version):
                return packed
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
        # the source is held, so that no other weight comes to lie where it lay
        self._remembered = weight, weight._version, packed
        return packed

    def __getstate__(self) -> dict[str, Any]:
        # what oneDNN lays out can be neither copied nor written
        return {key: value for key, value in super().__getstate__().items() if key != '_remembered'}


def pack_linears(module: nn.Module) -> None:
    """Let the linear maps inside a module that is to run but not to train remember their packed weights."""
    if not cpu_bfloat16.CPU_MULTIPLIES_BFLOAT16:
        return
    for linear in module.modules():
        # subclasses may be read by others than their own forward pass
        if type(linear) is nn.Linear:
            linear.__class__ = PackedLinear
