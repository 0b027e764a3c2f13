"""Images go to the device and are normalised there; what else belongs to them stays."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.model import ImgDataPreprocessor
from mmengine.structures import BaseDataElement
from torch import Tensor

from densevlm_mm.registry import MODELS


@MODELS.register_module()
class VLMPreprocessor(ImgDataPreprocessor):
    """mmengine's preprocessor of images, which leaves data samples where they are.

    A batch holds hundreds of small tensors. The models send what they need of them, in one piece: see `send`. To make
    one copy of the images as well, let the data loader stack them: ``collate_fn=dict(type='default_collate')``.
    """

    def cast_data(self, data: Any) -> Any:
        """What mmengine moves to the device, but for data samples."""
        return data if isinstance(data, BaseDataElement) else super().cast_data(data)


def send(tensor: Tensor, where: torch.device) -> Tensor:
    """The tensor on a device; a GPU copies it while this process goes on."""
    if where.type == 'cuda' and tensor.device.type == 'cpu':
        return tensor.pin_memory().to(where, non_blocking=True)
    return tensor.to(where)
