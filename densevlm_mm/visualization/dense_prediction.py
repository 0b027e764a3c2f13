"""Pictures of what a model's dense features say, beside the ground truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from densevlm_mm.datasets.transforms.panoptic_regions import read_segment_map
from densevlm_mm.vlm import VLM
from densevlm_mm.vlm.checkpoints import save_atomically

from .class_styles import class_colors


@torch.no_grad()
def dense_labels(vlm: VLM, images: Tensor, texts: Tensor) -> Tensor:
    """Most similar class of every pixel.

    Args:
        vlm: The model.
        images: ``(B, 3, H, W)``, normalised.
        texts: ``(K, C)`` class embeddings.

    Returns:
        ``(B, H, W)`` class indices, from bilinearly enlarged cosines.
    """
    cosines = torch.einsum('bchw,kc->bkhw', vlm.encode_dense(images), F.normalize(texts, dim=-1))
    return F.interpolate(cosines, size=images.shape[-2:], mode='bilinear', align_corners=False).argmax(1)


def panoptic_labels(info: Mapping[str, Any]) -> np.ndarray:
    """Ground truth ``(H, W)`` of a `PanopticRegionDataset` entry: class indices, -1 where nothing is annotated."""
    ids = read_segment_map(info['seg_map_path'])
    labels = np.full(ids.shape, -1)
    for segment in info['segments_info']:
        labels[ids == segment['id']] = segment['label']
    return labels


def plot_dense_predictions(
    path: str | Path,
    images: Sequence[np.ndarray],
    label_maps: Mapping[str, Sequence[np.ndarray]],
    names: Sequence[str],
    is_thing: Sequence[bool],
    title: str = '',
) -> None:
    """Write one picture: a row per source of labels, a column per image, and a legend of all classes.

    Args:
        path: ``.png`` to write.
        images: ``(H, W, 3)`` uint8 each.
        label_maps: For each row title, one ``(H, W)`` map of class indices per image; -1 stays blank.
        names: The K class names.
        is_thing: Their flags.
        title: Heading.
    """
    colors = class_colors(is_thing)
    rows = {'image': images, **{name: [_paint(m, colors) for m in maps] for name, maps in label_maps.items()}}
    figure = Figure(figsize=(1.35 * len(images) + 3.2, 1.4 * len(rows) + 0.6), layout='constrained')
    axes = figure.subplots(len(rows), len(images), squeeze=False)
    for line, (name, pictures) in zip(axes, rows.items(), strict=True):
        for axis, picture in zip(line, pictures, strict=True):
            axis.imshow(picture, interpolation='nearest')
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, fontsize=11)
    handles = [
        Patch(color=colors[i], label=f'{names[i]}' + ('' if is_thing[i] else ' (stuff)')) for i in range(len(names))
    ]
    figure.legend(handles=handles, loc='outside right center', fontsize=9, frameon=False)
    if title:
        figure.suptitle(title, fontsize=12)
    save_atomically(Path(path), lambda file: figure.savefig(file, format='png', dpi=110))


def _paint(labels: np.ndarray, colors: np.ndarray) -> np.ndarray:
    return np.where((labels >= 0)[..., None], colors[np.maximum(labels, 0)], 1.0)
