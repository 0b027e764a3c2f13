"""What a model sees in every pixel."""

from __future__ import annotations

from typing import Any

import numpy as np

from densevlm_mm.vlm import Vocabulary, build_vocabulary

from .canvas import WHITE, check_image, display_name, enlarge, enlargement, font_size, stack_columns, start_drawing
from .class_styles import rgb_colors
from .instances import check_labels
from .legend import Entry, legend_beside

_MAX_ENTRIES = 20


def draw_segmentation(image: np.ndarray, labels: Any, vocabulary: Any, *, opacity: float = 0.5) -> np.ndarray:
    """Classes of the pixels as colours over the image, and a legend of those that are there.

    The legend lists the classes by their share of the image, largest first, 20 of them at most. Small images are
    enlarged.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
        labels: ``(H, W)`` class indices; pixels with negative ones, or ones beyond the vocabulary, stay as they are.
        vocabulary: Their classes: a `Vocabulary` or anything that `build_vocabulary` takes.
        opacity: Share of the colours in the painted pixels, in 0..1.

    Returns:
        RGB uint8, the picture beside its legend.

    Raises:
        ValueError: If the image is of another kind, the labels are of another size, or the opacity is out of range.
    """
    vocabulary = build_vocabulary(vocabulary)
    if not 0 <= opacity <= 1:
        raise ValueError(f'opacity must be in 0..1, got {opacity}')
    factor = enlargement(check_image(image))
    labels = check_labels(labels, vocabulary)
    if labels.shape != image.shape[:2]:
        raise ValueError(f'labels {labels.shape} are of another size than the image {image.shape[:2]}: resize them')
    labels = np.where((labels >= 0) & (labels < len(vocabulary)), labels, -1)
    shares = np.bincount(labels.ravel() + 1, minlength=len(vocabulary) + 1) / labels.size
    present = [int(label) for label in np.argsort(-shares[1:], kind='stable') if shares[1 + label] > 0]
    colors = rgb_colors(vocabulary)
    picture = enlarge(image, factor)
    visualizer = start_drawing(picture)
    if present:
        enlarged = enlarge(labels, factor)
        masks = np.stack([enlarged == label for label in present])
        visualizer.draw_binary_masks(masks, [colors[label] for label in present], float(opacity))
    legend = legend_beside(_entries(present, shares, vocabulary), font_size(picture))
    return stack_columns([visualizer.get_image(), legend])


def _entries(present: list[int], shares: np.ndarray, vocabulary: Vocabulary) -> list[Entry]:
    colors = rgb_colors(vocabulary)
    entries = [
        Entry(
            display_name(vocabulary.names[label]) + ('' if vocabulary.is_thing[label] else ' (stuff)'),
            (colors[label],),
            value=_percent(shares[1 + label]),
        )
        for label in present[:_MAX_ENTRIES]
    ]
    if rest := present[_MAX_ENTRIES:]:
        entries.append(Entry(f'+ {len(rest)} more', (WHITE,), value=_percent(sum(shares[1 + i] for i in rest))))
    if shares[0] > 0:
        entries.append(Entry('not painted', (WHITE,), value=_percent(shares[0])))
    return entries


def _percent(share: float) -> str:
    return f'{100 * share:.1f} %' if share >= 0.0005 else '< 0.1 %'
