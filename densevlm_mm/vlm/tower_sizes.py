"""Family and sizes of a CLIP's towers, read off the names and shapes of its tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]


def vision_sizes(shapes: Shapes) -> dict[str, Any]:
    """What the tensors tell of the vision tower.

    Args:
        shapes: Shape of each tensor by its name, under the names of EVA-CLIP, OpenAI, open_clip or this package.

    Returns:
        ``family`` and, as far as they show, ``embed_dim``, ``width``, ``layers`` (a list per stage for convolutional
        towers), ``patch`` (pixels per cell of the native grid), ``grid`` (cells per side) and ``heads``; empty when no
        known tower is there.
    """
    inner = {
        key.removeprefix('visual.').removeprefix('trunk.'): tuple(shape)
        for key, shape in shapes.items()
        if key.startswith('visual.')
    }
    for mark, read in _FAMILIES.items():
        if mark in inner:
            return {key: value for key, value in read(inner).items() if value is not None}
    return {}


def text_sizes(shapes: Shapes) -> dict[str, int]:
    """``embed_dim``, ``width``, ``layers``, ``context`` and ``vocab`` of CLIP's text transformer; empty without one."""
    inner = {key.removeprefix('text.'): tuple(shape) for key, shape in shapes.items() if not key.startswith('visual.')}
    needed = ('token_embedding.weight', 'positional_embedding')
    if any(len(inner.get(key, ())) != 2 for key in needed):
        return {}
    (vocab, width), context = inner['token_embedding.weight'], inner['positional_embedding'][0]
    sizes = {'width': width, 'layers': _count(inner, 'transformer.resblocks.'), 'context': context, 'vocab': vocab}
    matrix, linear = inner.get('text_projection'), inner.get('text_projection.weight')
    embed_dim = matrix[1] if matrix else linear[0] if linear else None
    return sizes if embed_dim is None else {'embed_dim': embed_dim, **sizes}


def _count(shapes: Shapes, prefix: str) -> int:
    return len({key.removeprefix(prefix).partition('.')[0] for key in shapes if key.startswith(prefix)})


def _at(shapes: Shapes, key: str, axis: int) -> int | None:
    shape = shapes.get(key, ())
    return shape[axis] if -len(shape) <= axis < len(shape) else None


def _side(cells: int | None, prefix_tokens: int = 0) -> int | None:
    """Cells per side of a square grid."""
    side = math.isqrt(max((cells or 0) - prefix_tokens, 0))
    return side if side and side * side + prefix_tokens == cells else None


def _eva(shapes: Shapes) -> dict[str, Any]:
    width, head_dim = _at(shapes, 'pos_embed', -1), _at(shapes, 'rope.freqs_cos', -1)
    return {
        'family': 'EVA-02',
        'embed_dim': _at(shapes, 'head.weight', 0),
        'width': width,
        'layers': _count(shapes, 'blocks.'),
        'patch': _at(shapes, 'patch_embed.proj.weight', -1),
        'grid': _side(_at(shapes, 'pos_embed', 1), 1),
        'heads': width // head_dim if width and head_dim else None,
    }


def _openai_vit(shapes: Shapes) -> dict[str, Any]:
    return {
        'family': 'OpenAI ViT',
        'embed_dim': _at(shapes, 'proj', 1),
        'width': _at(shapes, 'conv1.weight', 0),
        'layers': _count(shapes, 'transformer.resblocks.'),
        'patch': _at(shapes, 'conv1.weight', -1),
        'grid': _side(_at(shapes, 'positional_embedding', 0), 1),
    }


def _resnet(shapes: Shapes) -> dict[str, Any]:
    return {
        'family': 'OpenAI ResNet',
        'embed_dim': _at(shapes, 'attnpool.c_proj.weight', 0),
        'width': _at(shapes, 'layer1.0.conv1.weight', 0),
        'layers': [_count(shapes, f'layer{stage}.') for stage in (1, 2, 3, 4)],
        'patch': 32,
        'grid': _side(_at(shapes, 'attnpool.positional_embedding', 0), 1),
    }


def _timm_vit(shapes: Shapes) -> dict[str, Any]:
    is_siglip = 'attn_pool.latent' in shapes and 'cls_token' not in shapes and 'norm_pre.weight' not in shapes
    prefix = 0 if _side(_at(shapes, 'pos_embed', 1)) else 1
    width = _at(shapes, 'pos_embed', -1)
    return {
        'family': 'SigLIP' if is_siglip else 'timm ViT',
        'embed_dim': width if is_siglip else _at(shapes, 'head.weight', 0),
        'width': width,
        'layers': _count(shapes, 'blocks.'),
        'patch': _at(shapes, 'patch_embed.proj.weight', -1),
        'grid': _side(_at(shapes, 'pos_embed', 1), prefix),
    }


def _convnext(shapes: Shapes) -> dict[str, Any]:
    stages = _count(shapes, 'stages.')
    heads = ('head.proj.weight', 'head.mlp.fc2.weight')
    return {
        'family': 'ConvNeXt',
        'embed_dim': next((_at(shapes, key, 0) for key in heads if key in shapes), None),
        'width': _at(shapes, 'stem.0.weight', 0),
        'layers': [_count(shapes, f'stages.{stage}.blocks.') for stage in range(stages)],
        'patch': 32,
    }


# A tensor that only this family has, and how its sizes are read.
_FAMILIES: dict[str, Callable[[Shapes], dict[str, Any]]] = {
    'blocks.0.attn.q_proj.weight': _eva,
    'transformer.resblocks.0.ln_1.weight': _openai_vit,
    'layer1.0.conv1.weight': _resnet,
    'stages.0.blocks.0.conv_dw.weight': _convnext,
    'blocks.0.attn.qkv.weight': _timm_vit,
}
