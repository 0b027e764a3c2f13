"""The maps of a plain vision transformer, resampled by learnt layers to the pyramid that an FPN expects."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmcv.cnn import build_norm_layer
from mmengine.model import BaseModule
from torch import Tensor, nn

from densevlm_mm.registry import MODELS


@MODELS.register_module()
class TokenPyramid(BaseModule):
    """F-ViT's resamplers: transposed convolutions up, max pooling down, every level as wide as its tokens.

    Unlike ViTDet's simple feature pyramid it takes one map per level, from different depths of the transformer, and
    leaves lateral and top-down paths to the FPN that follows. All maps come from a frozen tower, so gradients end here.

    Args:
        in_channels: Width of the tokens, one number or one per level.
        scales: Size of each level in multiples of the token grid, each of 4, 2, 1 and 0.5.
        norm_cfg: Norm layer within the fourfold resampler.

    Raises:
        ValueError: For another scale, or widths of another number than scales.
    """

    def __init__(
        self,
        in_channels: int | Sequence[int],
        *,
        scales: Sequence[float] = (4, 2, 1, 0.5),
        norm_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        widths = [in_channels] * len(scales) if isinstance(in_channels, int) else list(in_channels)
        if len(widths) != len(scales):
            raise ValueError(f'{len(widths)} in_channels for {len(scales)} scales; give one number, or one each')
        unknown = [scale for scale in scales if scale not in _RESAMPLERS]
        if unknown:
            raise ValueError(f'no resampler for the scale(s) {unknown}; known: {sorted(_RESAMPLERS)}')
        norm_cfg = dict(norm_cfg or {'type': 'SyncBN'})
        self.levels = nn.ModuleList(_RESAMPLERS[s](w, norm_cfg) for s, w in zip(scales, widths, strict=True))

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Levels of token maps ``(B, W_i, h, w)``: one ``(B, W_i, scale * h, scale * w)`` each, rounded down."""
        if len(maps) != len(self.levels):
            raise ValueError(
                f'{len(maps)} maps for {len(self.levels)} levels; give the backbone as many out_indices as scales'
            )
        return tuple(level(tokens) for level, tokens in zip(self.levels, maps, strict=True))


def _up_twice(width: int, norm_cfg: dict) -> nn.Module:
    return nn.Sequential(_doubling(width), build_norm_layer(norm_cfg, width)[1], nn.GELU(), _doubling(width))


def _doubling(width: int) -> nn.Module:
    return nn.ConvTranspose2d(width, width, kernel_size=2, stride=2)


_RESAMPLERS: dict[float, Callable[[int, dict], nn.Module]] = {
    4: _up_twice,
    2: lambda width, norm_cfg: _doubling(width),
    1: lambda width, norm_cfg: nn.Identity(),
    0.5: lambda width, norm_cfg: nn.MaxPool2d(kernel_size=2, stride=2),
}
