"""Made-up inputs: photographs in COCO's size and format, regions, class embeddings; and towers of no size."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

# COCO's usual size. With this much noise a file has about COCO's 150 kB, which decoding time depends on.
PHOTO_SIZE = (640, 480)
_NOISE = 9.0
# share of things among the 316 classes that DenseVLM was released with
_THINGS = 204 / 316


def write_photos(folder: Path, count: int, size: tuple[int, int] = PHOTO_SIZE) -> list[str]:
    """Write JPEGs of soft colours and noise into a folder.

    Args:
        folder: Where to.
        count: How many.
        size: Width and height in px.

    Returns:
        Their file names.
    """
    names = [f'{number:06d}.jpg' for number in range(count)]
    for number, name in enumerate(names):
        generator = np.random.default_rng(number)
        colours = Image.fromarray(generator.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        pixels = np.asarray(colours.resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
        pixels = pixels + generator.normal(0, _NOISE, pixels.shape)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name, quality=95)
    return names


def write_annotations(path: Path, names: Sequence[str], entries: int) -> None:
    """Write a COCO-style file with so many entries, which point at the same few images again and again."""
    images = [{'id': i, 'file_name': names[i % len(names)]} for i in range(entries)]
    path.write_text(json.dumps({'images': images}), encoding='utf-8')


def num_things(classes: int) -> int:
    """How many of so many classes are things: about as many as in DenseVLM's list, and never all."""
    return max(1, min(classes - 1, round(_THINGS * classes)))


def class_rows(classes: int, width: int, device: str | torch.device = 'cpu') -> Tensor:
    """Class embeddings ``(classes, width)``: random directions."""
    return F.normalize(torch.randn(classes, width, generator=torch.Generator().manual_seed(classes)), dim=-1).to(device)


def random_boxes(count: int, generator: torch.Generator) -> Tensor:
    """Boxes ``(count, 4)``, xyxy in 0..1, sides of 0.1 to 0.7."""
    sides = 0.1 + 0.6 * torch.rand(count, 2, generator=generator)
    corner = (1 - sides) * torch.rand(count, 2, generator=generator)
    return torch.cat([corner, corner + sides], dim=1)


def ellipse_masks(boxes: Tensor, grid: tuple[int, int]) -> Tensor:
    """Masks ``(N, h, w)``: the ellipses in boxes ``(N, 4)``, on a token grid."""
    y, x = ((torch.arange(cells) + 0.5) / cells for cells in grid)
    centre, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    dx = (x - centre[:, :1]) / half[:, :1]
    dy = (y - centre[:, 1:]) / half[:, 1:]
    return (dx[:, None, :].square() + dy[:, :, None].square() <= 1).float()


def tiny_arch(width: int, embed_dim: int, patch_size: int) -> dict[str, Any]:
    """Model config of an EVA-02-CLIP with two blocks, for trying a command."""
    vision = {'image_size': 4 * patch_size, 'patch_size': patch_size, 'layers': 2, 'width': width, 'head_width': 16}
    vision |= {'mlp_ratio': 2.6667, 'eva_model_name': 'tiny', 'rope': True, 'naiveswiglu': True, 'subln': True}
    text = {'context_length': 8, 'width': 16, 'heads': 2, 'layers': 1, 'words': ['thing', 'stuff']}
    return {'embed_dim': embed_dim, 'vision_cfg': vision, 'text_cfg': text}


# The larger one's patches do not divide the images, as those of ViT-L/14 do not.
TINY_ARCHS = {
    'tiny-student': tiny_arch(width=32, embed_dim=16, patch_size=8),
    'tiny-teacher': tiny_arch(width=48, embed_dim=24, patch_size=7),
}


def arch_named(name: str) -> str | Mapping[str, Any]:
    """What `load_vlm` takes for a name on the command line, which may also be 'tiny-student' or 'tiny-teacher'."""
    return TINY_ARCHS.get(name, name)
