"""A region proposal network with norm layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmcv.cnn import ConvModule
from mmdet.models.dense_heads import RPNHead
from torch import nn

from densevlm_mm.registry import MODELS


@MODELS.register_module()
class NormedRPNHead(RPNHead):
    """MMDetection's RPN head with a norm layer in each of its convolutions, as F-VLM's and F-ViT's for LVIS.

    Args:
        args: Those of ``RPNHead``.
        norm_cfg: Norm layer.
        options: Those of ``RPNHead``.
    """

    def __init__(self, *args: Any, norm_cfg: Mapping[str, Any], **options: Any) -> None:
        self.norm_cfg = dict(norm_cfg)
        super().__init__(*args, **options)

    def _init_layers(self) -> None:
        super()._init_layers()
        widths = [self.in_channels, *[self.feat_channels] * self.num_convs]
        self.rpn_conv = nn.Sequential(*map(self._layer, widths[:-1], widths[1:]))

    def _layer(self, in_channels: int, out_channels: int) -> ConvModule:
        # forward_single's ReLU comes once more, which changes nothing but may not happen in place
        return ConvModule(in_channels, out_channels, 3, padding=1, norm_cfg=self.norm_cfg, inplace=False)
