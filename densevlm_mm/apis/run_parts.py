"""Backbones, necks and heads of configs, run on a small image to see what they give and whether they fit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from densevlm_mm.registry import MODELS

# Rows and columns of the image: no square, and 32 divides both.
IMAGE = (128, 96)


class SwapError(ValueError):
    """A config whose backbone cannot be exchanged; the message says why, and what to do."""


class Level(NamedTuple):
    """One output of a backbone."""

    channels: int
    stride: int


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Put a sentence before whatever goes wrong inside.

    Raises:
        SwapError: In the place of any other error.
    """
    try:
        yield
    except Exception as error:  # configs and the models they name may raise anything
        raise SwapError(f'{what}: {type(error).__name__}: {error}') from error


@contextmanager
def _scope_of(cfg: Config) -> Iterator[None]:
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')), torch.no_grad():
        yield


def _build(part: Any) -> nn.Module:
    module = MODELS.build(part)
    module.eval()  # which returns nothing in MMDetection's ResNet
    return module


def _build_backbone(cfg: Config) -> nn.Module:
    # its weights are not needed, and may be nowhere but on the net
    return _build({key: value for key, value in cfg.model.backbone.items() if key not in ('init_cfg', 'pretrained')})


def run_backbone(cfg: Config) -> list[Level]:
    """What the backbone of a config gives.

    Raises:
        SwapError: If it cannot be run, or its maps have no whole stride.
    """
    with explained(f'the backbone {cfg.model.backbone.type} cannot be run to see its channels'), _scope_of(cfg):
        maps = _build_backbone(cfg)(torch.zeros(1, 3, *IMAGE))
        shapes = [tuple(level.shape[1:]) for level in ([maps] if isinstance(maps, Tensor) else maps)]
    levels = [Level(channels, round(IMAGE[0] / rows)) for channels, rows, _ in shapes]
    for level, (_, *grid) in zip(levels, shapes, strict=True):
        if grid != [-(-pixels // level.stride) for pixels in IMAGE]:
            raise SwapError(f'the backbone gives maps {shapes} of {IMAGE} pixels, which have no whole strides')
    return levels


def run_swapped(stock: Config, swapped: Config) -> None:
    """See whether the parts behind a new backbone take its maps.

    With a neck, it must give what the old neck gave of the old backbone, so that whatever follows sees no difference.
    Without one, the whole model must predict.

    Raises:
        SwapError: If they do not.
    """
    if not swapped.model.get('neck'):
        with explained('the new model does not run'), _scope_of(swapped):
            _predict(_build(swapped.model))
        return
    before, after = _neck_shapes(stock, 'old'), _neck_shapes(swapped, 'new')
    if before != after:
        raise SwapError(f'the neck gives maps {after} of {IMAGE} pixels, where the old one gave {before}')


def _neck_shapes(cfg: Config, which: str) -> list[tuple[int, ...]]:
    with explained(f'the {which} backbone and the neck do not run on {IMAGE} pixels'), _scope_of(cfg):
        maps = _build(cfg.model.neck)(_build_backbone(cfg)(torch.zeros(1, 3, *IMAGE)))
    return [tuple(level.shape[1:]) for level in maps]


def _predict(model: nn.Module) -> None:
    """Run a detector or segmentor, and the auxiliary heads of the latter, which predict nothing."""
    image = torch.zeros(1, 3, *IMAGE)
    if not hasattr(model, 'decode_head'):
        meta = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape'), IMAGE)
        model.predict(image, [BaseDataElement(metainfo={**meta, 'scale_factor': (1.0, 1.0)})], rescale=False)
        return
    model.predict(image)
    if model.with_auxiliary_head:
        heads, features = model.auxiliary_head, model.extract_feat(image)
        for head in heads if isinstance(heads, nn.ModuleList) else [heads]:
            head(features)
