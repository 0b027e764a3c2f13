"""Frozen models that distillers learn from."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.device import get_device
from torch import Tensor, nn

from densevlm_mm.vlm import VLM, load_vlm
from densevlm_mm.vlm.region_pooling import pool_boxes
from densevlm_mm.vlm.towers import VisionTower
from densevlm_mm.vlm.towers.packed_linear import pack_linears

from .pixels import BYTES, Renormalize, Statistics


class FrozenDenseTeacher(nn.Module):
    """The image half of a VLM, for its dense features.

    Args:
        tower: Vision tower.
        dense_mode: How its last block makes dense features.
        pixels: Mean and standard deviation by which the images are normalised; None means the tower's own.
    """

    def __init__(self, tower: VisionTower, dense_mode: str, pixels: Statistics | None = None) -> None:
        super().__init__()
        self.tower = tower
        self.dense_mode = dense_mode
        self.renormalize = Renormalize(pixels or statistics(tower), statistics(tower))

    @torch.no_grad()
    def forward(self, inputs: Tensor, boxes: Tensor) -> Tensor:
        """Box features ``(B, N, C)``, fp32, of images (B, 3, H, W) and boxes (B, N, 4) in 0..1."""
        with own_precision(self.tower, inputs.device):
            dense = self.tower.encode_dense(self.renormalize(inputs), self.dense_mode)
        return pool_boxes(F.normalize(dense.float(), dim=1), boxes)


class FrozenCropTeacher(nn.Module):
    """The image half of a VLM, for image embeddings of crops.

    Args:
        tower: Vision tower.
    """

    def __init__(self, tower: VisionTower) -> None:
        super().__init__()
        self.tower = tower
        self.normalize = Renormalize(BYTES, statistics(tower))

    @torch.no_grad()
    def forward(self, crops: Tensor) -> Tensor:
        """Embeddings ``(N, C)``, fp32, of crops (N, 3, S, S) of bytes."""
        with own_precision(self.tower, crops.device):
            return self.tower.encode_image(self.normalize(crops)).float()


def own_precision(tower: VisionTower, device: torch.device) -> AbstractContextManager:
    """Autocast in which a tower of half precision runs as it is, even where the step is in the other one."""
    half = tower.dtype in (torch.float16, torch.bfloat16)
    if half and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, dtype=tower.dtype)
    return nullcontext()


def statistics(tower: VisionTower) -> Statistics:
    """Mean and standard deviation that a tower wants its pixels normalised by."""
    return tower.mean, tower.std


def load_on_device(config: Mapping[str, Any]) -> VLM:
    """`load_vlm` onto this process's device, where making class embeddings takes seconds instead of minutes.

    Args:
        config: Arguments of `load_vlm`, and perhaps ``compile``, see `compile_tower`.
    """
    config = dict(config)
    compiled = config.pop('compile', False)
    vlm = load_vlm(**{'device': get_device(), **config})
    compile_tower(vlm.visual, compiled, frozen=True)
    return vlm


def compile_tower(tower: VisionTower, options: bool | Mapping[str, Any], *, frozen: bool = False) -> None:
    """Compile the blocks of a tower if a config says so.

    Args:
        tower: Vision tower.
        options: False, True, or a mapping of `torch.compile`'s options.
        frozen: Whether its weights stay as they are, so that they may be merged first, or packed if nothing is
            compiled.
    """
    if options or isinstance(options, Mapping):
        if frozen:
            tower.fold()
        tower.compile_blocks(**({} if isinstance(options, bool) else options))
    elif frozen:
        pack_linears(tower)
