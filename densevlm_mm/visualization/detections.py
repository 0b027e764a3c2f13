"""What a detector finds."""

from __future__ import annotations

from typing import Any

import numpy as np
from mmengine.visualization import Visualizer
from mmengine.visualization.utils import tensor2ndarray

from densevlm_mm.vlm import Vocabulary, build_vocabulary

from .canvas import (
    BLACK,
    Color,
    check_image,
    cut_text,
    display_name,
    enlarge,
    enlargement,
    font_size,
    outline,
    stack_rows,
    start_drawing,
    text_size,
    write,
)
from .class_styles import rgb_colors
from .instances import Instances, Places, read_instances
from .legend import Entry, legend_below

_MASK_OPACITY = 0.45
# line widths, in font sizes
_THICK, _THIN = 0.3, 0.1


def draw_detections(
    image: np.ndarray,
    boxes: Any,
    labels: Any,
    scores: Any,
    vocabulary: Any,
    *,
    masks: Any = None,
    score_thr: float = 0.3,
) -> np.ndarray:
    """Detected boxes, and masks, with class names and scores.

    Where the vocabulary has a split, boxes of novel classes are thick and their names say ``*novel``, those of others
    are thin, and a legend says so. Small images are enlarged.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
        boxes: ``(N, 4)`` xyxy in px of the image.
        labels: ``(N,)`` class indices.
        scores: ``(N,)`` scores in 0..1.
        vocabulary: Their classes: a `Vocabulary` or anything that `build_vocabulary` takes.
        masks: ``(N, H, W)`` bool, or None.
        score_thr: Lowest score that is shown.

    Returns:
        RGB uint8, the picture above its legend.

    Raises:
        ValueError: If the image is of another kind, or boxes, labels, scores, masks and vocabulary do not fit each
            other.
    """
    vocabulary = build_vocabulary(vocabulary)
    factor = enlargement(check_image(image))
    picture = enlarge(image, factor)
    size = font_size(picture)
    found = read_instances(boxes, labels, scores, vocabulary, picture, factor)
    masks = None if masks is None else _check_masks(masks, len(found), image)
    order = np.argsort(found.scores, kind='stable')  # the most certain ones on top
    order = order[found.scores[order] >= score_thr]
    found = found[order]
    colors = rgb_colors(vocabulary)
    box_colors = [colors[label] for label in found.labels]
    visualizer = start_drawing(picture)
    if masks is not None and len(order):
        enlarged = np.stack([enlarge(masks[i], factor) for i in order])
        visualizer.draw_binary_masks(enlarged, box_colors, _MASK_OPACITY)
    widths = [size * _line_width(vocabulary, label) for label in found.labels]
    outline(visualizer, found.boxes, box_colors, widths)
    _write_names(visualizer, picture, found, vocabulary, size)
    return stack_rows([visualizer.get_image(), legend_below(_entries(vocabulary, size), picture.shape[1], size)])


def _check_masks(masks: Any, count: int, image: np.ndarray) -> np.ndarray:
    masks = np.asarray(tensor2ndarray(masks))
    if masks.shape != (count, *image.shape[:2]):
        raise ValueError(f'masks {(count, *image.shape[:2])} are needed, one per box, got {masks.shape}')
    return masks.astype(bool)


def _has_split(vocabulary: Vocabulary) -> bool:
    return any(part is not None for part in vocabulary.split)


def _line_width(vocabulary: Vocabulary, label: int) -> float:
    return _THICK if vocabulary.split[label] == 'novel' or not _has_split(vocabulary) else _THIN


def _write_names(
    visualizer: Visualizer, picture: np.ndarray, found: Instances, vocabulary: Vocabulary, size: float
) -> None:
    colors, places, names = rgb_colors(vocabulary), Places(picture), []
    for i in reversed(range(len(found))):  # the most certain ones choose first
        label = found.labels[i]
        mark = ' *novel' if vocabulary.split[label] == 'novel' else ''
        end = f' {found.scores[i]:.2f}{mark}'
        room = 0.9 * picture.shape[1] - text_size(end, size)[0]
        text = cut_text(display_name(vocabulary.names[label]), room, size) + end
        names.append((text, places.take(found.boxes[i], text_size(text, size), 0.15 * size), colors[label]))
    names.reverse()
    texts, corners, backgrounds = zip(*names, strict=True) if names else ((), (), ())
    write(visualizer, texts, corners, size, backgrounds=backgrounds)


def _entries(vocabulary: Vocabulary, size: float) -> list[Entry]:
    kinds: dict[str | None, tuple[str, float]] = {
        'novel': ('*novel class', _THICK),
        'base': ('base class', _THIN),
        None: ('neither base nor novel', _THIN),
    }
    shown = kinds if _has_split(vocabulary) else {}
    example: tuple[Color, ...] = (BLACK,)
    return [
        Entry(text, example, (width * size, '-')) for part, (text, width) in shown.items() if part in vocabulary.split
    ]
