"""A VLM's vision tower as a backbone for MMDetection and MMSegmentation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor

from densevlm_mm.registry import MODELS
from densevlm_mm.vlm import load_vlm


@MODELS.register_module()
class DenseVLMBackbone(BaseModule):
    """Multi-level features of a CLIP, CLIPSelf or DenseVLM vision tower.

    A ViT has one resolution; `strides` resizes its maps bilinearly to the pyramid that a convolutional
    backbone has, so that stock necks and heads fit with only ``in_channels`` changed. The blocks of a ResNet or
    ConvNeXt are its four stages, which have these strides by nature.

    Images must be normalised with the tower's mean and standard deviation: CLIP's (RGB 122.771, 116.746, 104.094
    and 68.501, 66.632, 70.323 on the 0..255 scale) or SigLIP's (127.5 throughout), see ``docs/towers.md``.

    Args:
        arch: See `load_vlm`.
        checkpoint: See `load_vlm`. None leaves random weights, for when the checkpoint of a whole detector or
            segmentor follows.
        out_indices: Blocks whose maps become the levels, counted from 0. The last block's tokens
            follow `dense_mode`: with 'value' those of the value path, since fine-tuning leaves its attention
            behind.
        strides: Pixels per cell of each level; 'pyramid' doubles them from 4 on, as the stages of a ResNet do;
            None keeps each map as it is.
        trainable: How many blocks train, counted back from the last one that the outputs use; the rest of the
            tower is frozen. None and 0 freeze it all.
        frozen_stages: MMDetection's way to say the same: freeze the stem and the first so many blocks; -1
            lets the stem train, too. The final norm and projection always stay frozen. Excludes `trainable`.
        dense_mode: How the last block works; see `load_vlm`. Without `checkpoint`, name it unless it is 'value': a
            detector's file does not.
        with_dense: Append the final dense map, in the image-text space and L2-normalised per cell.
        init_cfg: Must be None: weights come strictly from `checkpoint`.
        pretrained: Must be None. MMSegmentation hands its segmentors' ``pretrained`` down to the backbone.

    Raises:
        ValueError: For options that contradict each other or do not fit the tower.
    """

    def __init__(
        self,
        arch: str | Mapping[str, Any],
        checkpoint: str | None = None,
        out_indices: Sequence[int] = (3, 5, 7, 11),
        *,
        strides: Sequence[int] | Literal['pyramid'] | None = 'pyramid',
        trainable: int | None = None,
        frozen_stages: int | None = None,
        dense_mode: str | None = None,
        with_dense: bool = False,
        init_cfg: None = None,
        pretrained: None = None,
    ) -> None:
        super().__init__()
        if init_cfg is not None or pretrained is not None:
            raise ValueError(
                'init_cfg and pretrained load without strictness; set them to None (MMSegmentation: '
                'model.pretrained=None) and give the file as `checkpoint`'
            )
        if trainable is not None and frozen_stages is not None:
            raise ValueError('give trainable or frozen_stages, not both')
        if not out_indices and not with_dense:
            raise ValueError('out_indices is empty: name the blocks to output, or set with_dense')
        if strides == 'pyramid':
            strides = [4 * 2**level for level in range(len(out_indices))]
        if strides is not None:
            _check_strides(strides, len(out_indices))
        vlm = load_vlm(arch, checkpoint, dense_mode=dense_mode)
        self.tower = vlm.visual
        self.dense_mode = vlm.dense_mode
        self.out_indices = tuple(self.tower.block_index(i) for i in out_indices)
        self.strides = None if strides is None else tuple(strides)
        self.with_dense = with_dense
        self.depth = len(self.tower.blocks) if with_dense else max(self.out_indices) + 1
        self._freeze(trainable, frozen_stages)

    @property
    def out_channels(self) -> list[int]:
        """Channels of each output map."""
        dense = [self.tower.embed_dim] if self.with_dense else []
        return [self.tower.block_channels[i] for i in self.out_indices] + dense

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Feature maps of images ``(B, 3, H, W)``.

        Returns:
            One ``(B, W_i, ceil(H / stride), ceil(W / stride))`` per level, or the block's own grid without strides;
            then the dense map ``(B, C, h, w)`` if asked for.
        """
        output = self.tower.run(inputs, self.dense_mode, self.out_indices, self.depth)
        maps = output.maps
        if self.strides is not None:
            cells = [self.tower.block_strides[i] for i in self.out_indices]
            levels = zip(maps, self.strides, cells, strict=True)
            maps = [resize_to_stride(m, stride, cell, inputs.shape[-2:]) for m, stride, cell in levels]
        if self.with_dense:
            maps = [*maps, F.normalize(self.tower.dense_map(output.state, output.grid), dim=1)]
        # Maps of tokens lie channels last, and convolutions would pass that on to mmcv's RoIAlign, which reads any
        # tensor as if its channels came first (mmcv issue 2203).
        return tuple(m.contiguous() for m in maps)

    def _freeze(self, trainable: int | None, frozen_stages: int | None) -> None:
        count = len(self.tower.blocks)
        if frozen_stages is not None and not -1 <= frozen_stages <= count:
            raise ValueError(f'frozen_stages must be in -1..{count}, got {frozen_stages}')
        if trainable is not None and not 0 <= trainable <= self.depth:
            raise ValueError(f'trainable must be in 0..{self.depth}, the blocks that the outputs use, got {trainable}')
        first = self.depth - (trainable or 0) if frozen_stages is None else max(frozen_stages, 0)
        self.tower.set_trainable(count - first, self.dense_mode)
        if frozen_stages == -1:
            self.tower.unfreeze_stem()
        # blocks beyond the last output do not run and would leave DDP waiting for their gradients
        for block in self.tower.blocks[self.depth :]:
            block.requires_grad_(False)
        self.train(self.training)


def resize_to_stride(tokens: Tensor, stride: int, patch_size: Sequence[int], image_size: Sequence[int]) -> Tensor:
    """Resample a token map bilinearly to cells of ``stride`` pixels, each aligned exactly with its pixels.

    Args:
        tokens: ``(B, C, h, w)``, one token or cell per patch; what lies beyond the last one takes its value.
        stride: Pixels per cell of the result.
        patch_size: ``(rows, columns)`` of one patch in pixels.
        image_size: ``(H, W)`` of the image, at least ``(h, w)`` patches.

    Returns:
        ``(B, C, ceil(H / stride), ceil(W / stride))``.
    """
    rows, columns = (math.ceil(pixels / stride) for pixels in image_size)
    # Up to where patches and cells end together: an interpolation between any other extents stretches the map.
    periods = [math.lcm(patch, stride) for patch in patch_size]
    extent = [math.ceil(n * stride / period) * period for n, period in zip((rows, columns), periods, strict=True)]
    bottom, right = (e // p - n for e, p, n in zip(extent, patch_size, tokens.shape[-2:], strict=True))
    if bottom or right:
        tokens = F.pad(tokens, (0, right, 0, bottom), mode='replicate')
    size = [e // stride for e in extent]
    return F.interpolate(tokens, size, mode='bilinear', align_corners=False)[..., :rows, :columns]


def _check_strides(strides: Sequence[int], levels: int) -> None:
    if len(strides) != levels:
        raise ValueError(f'{len(strides)} strides for {levels} out_indices; give one each, or None')
    if any(not isinstance(stride, int) or stride < 1 for stride in strides):
        raise ValueError(f'strides must be positive whole numbers of pixels, got {strides}')
