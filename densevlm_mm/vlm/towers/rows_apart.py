"""Linear maps that multiply the last row apart, as compiled training in bfloat16 on a CPU wants them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from . import cpu_bfloat16

# oneDNN deals out blocks of rows to threads: of the 1,025 tokens of ViT-B/16 on 512 px, the one beyond them costs as
# much as 127 more would, in either direction.
_BLOCK = 64
# What another call costs is as much as smaller maps save: measured at 768 x 768.
_MIN_WEIGHTS = 2**20


class RowsApartLinear(nn.Linear):
    """Linear map that, where it trains in compiled bfloat16 on a CPU, multiplies a row beyond whole blocks apart.

    Results are those of `torch.nn.Linear` up to the order of sums; of the gradient of the weight less is rounded.
    """

    def forward(self, x: Tensor) -> Tensor:
        """``(..., in_features) -> (..., out_features)``."""
        rows = x.shape[:-1].numel()
        if rows % _BLOCK != 1 or rows == 1 or not self._trains_in_compiled_bfloat16(x):
            return super().forward(x)
        product = _Product.apply(x.to(torch.bfloat16).flatten(0, -2), self.weight, self.bias)
        return product.unflatten(0, x.shape[:-1])

    def _trains_in_compiled_bfloat16(self, x: Tensor) -> bool:
        return (
            torch.compiler.is_compiling()  # elsewhere the calls cost what the products save
            and torch.is_grad_enabled()
            and self.weight.requires_grad
            and x.device.type == 'cpu'
            and torch.is_autocast_enabled('cpu')
            and torch.get_autocast_dtype('cpu') == torch.bfloat16
        )


def set_rows_apart(module: nn.Module) -> None:
    """Let the large linear maps inside a module that is to be compiled multiply the last row apart."""
    if not cpu_bfloat16.CPU_MULTIPLIES_BFLOAT16:
        return
    for linear in module.modules():
        # subclasses may be read by others than their own forward pass
        if type(linear) is nn.Linear and linear.weight.numel() > _MIN_WEIGHTS:
            linear.__class__ = RowsApartLinear


class _Product(torch.autograd.Function):
    """``x W' + b`` of bfloat16 rows ``(R, I)`` and parameters in fp32."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        cast = weight.to(x.dtype)
        ctx.save_for_backward(x, cast)
        ctx.has_bias = bias is not None
        return torch.ops.densevlm_mm.product(x, cast.t(), None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x, cast = ctx.saved_tensors
        # the sum is Inductor's to make while it casts
        of_weight = torch.addr(torch.mm(grad[:-1].t(), x[:-1]).float(), grad[-1].float(), x[-1].float())
        of_bias = grad.sum(0, dtype=torch.float32) if ctx.has_bias else None
        return torch.ops.densevlm_mm.product(grad, cast, None), of_weight, of_bias


# An operator of its own, so that torch.compile leaves its parts where they are. (`torch.library.custom_op` would check
# each call for aliases, which takes three times as long.)
torch.library.define('densevlm_mm::product', '(Tensor rows, Tensor factor, Tensor? bias) -> Tensor')


@torch.library.impl('densevlm_mm::product', 'CPU')
def _product(rows: Tensor, factor: Tensor, bias: Tensor | None) -> Tensor:
    """``(R, I) @ (I, O) + (O,)``."""
    product = rows.new_empty(len(rows), factor.shape[1])
    for some, out in ((rows[:-1], product[:-1]), (rows[-1:], product[-1:])):
        if bias is None:
            torch.mm(some, factor, out=out)
        else:
            torch.addmm(bias, some, factor, out=out)
    return product


@torch.library.register_fake('densevlm_mm::product')
def _product_shape(rows: Tensor, factor: Tensor, bias: Tensor | None) -> Tensor:
    return rows.new_empty(rows.shape[0], factor.shape[1])  # `len` would settle on one size
