"""Vision foundation models: frozen encoders whose patch features tell which parts of an image belong together."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densevlm_mm.registry import MODELS
from densevlm_mm.vlm import load_vlm, read_state_dict

from .pixels import Statistics
from .teachers import statistics


class FoundationModel(nn.Module):
    """Base of the frozen encoders.

    Attributes:
        patch_size: ``(rows, columns)`` of one patch in px.
        pixels: Mean and standard deviation that it wants its pixels normalised by.
    """

    patch_size: tuple[int, int]
    pixels: Statistics

    def patch_features(self, images: Tensor) -> Tensor:
        """Map ``(B, D, h, w)`` of normalised images (B, 3, h * rows, w * columns)."""
        raise NotImplementedError

    @torch.no_grad()
    def forward(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """Features on a grid of the caller's choice: the images are resized until the patches fit it.

        Args:
            images: ``(B, 3, H, W)``, normalised.
            grid: Rows and columns ``(h, w)``.

        Returns:
            ``(B, D, h, w)``.
        """
        size = tuple(tokens * patch for tokens, patch in zip(grid, self.patch_size, strict=True))
        if tuple(images.shape[-2:]) != size:
            images = F.interpolate(images, size=size, mode='bicubic', align_corners=False, antialias=True)
        return self.patch_features(images)


@MODELS.register_module()
class TimmFoundationModel(FoundationModel):
    """A ViT of timm, such as DINO's or DINOv2's.

    Args:
        name: timm's name, such as 'vit_base_patch14_dinov2'.
        checkpoint: File with its weights, as timm or its authors publish them; nothing is downloaded. None leaves them
            random.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If timm has no ViT of this name, or the file holds other weights or code.
    """

    def __init__(self, name: str, checkpoint: str | None) -> None:
        super().__init__()
        if not timm.is_model(name):
            raise ValueError(f'timm has no model {name!r}; timm.list_models("*dino*") names some')
        self.model = timm.create_model(name, pretrained=False, num_classes=0, dynamic_img_size=True)
        if checkpoint is not None:
            self._load(name, checkpoint)
        self.patch_size = tuple(self.model.patch_embed.patch_size)
        self.pixels = self.model.pretrained_cfg['mean'], self.model.pretrained_cfg['std']

    def _load(self, name: str, checkpoint: str) -> None:
        state = read_state_dict(checkpoint)
        # timm knows by which names the authors of its models publish their weights
        convert = getattr(sys.modules[type(self.model).__module__], 'checkpoint_filter_fn', None)
        state = state if convert is None else convert(state, self.model)
        try:
            self.model.load_state_dict({key: value for key, value in state.items() if not key.startswith('head.')})
        except RuntimeError as error:
            raise ValueError(f'{checkpoint} does not hold the weights of {name}: {error}') from error

    def patch_features(self, images: Tensor) -> Tensor:
        return self.model.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)[0]


@MODELS.register_module()
class VLMFoundationModel(FoundationModel):
    """The image half of a VLM, for the tokens that leave one of its blocks.

    Args:
        vlm: Arguments of `load_vlm`.
        block: Block counted from 0; negative ones from the end.

    Raises:
        ValueError: If there is no such block.
    """

    def __init__(self, vlm: Mapping[str, Any], block: int = -1) -> None:
        super().__init__()
        self.tower = load_vlm(**vlm).visual
        self.block = self.tower.block_index(block)
        self.patch_size = self.tower.block_strides[self.block]
        self.pixels = statistics(self.tower)

    def patch_features(self, images: Tensor) -> Tensor:
        return self.tower.run(images, indices=[self.block], depth=self.block + 1).maps[0]
