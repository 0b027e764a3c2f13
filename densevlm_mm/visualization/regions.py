"""What a model sees in regions."""

from __future__ import annotations

from typing import Any

import numpy as np

from densevlm_mm.vlm import build_vocabulary

from .canvas import (
    GREY,
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
from .class_styles import kind_entries, rgb_colors
from .instances import Instances, read_instances
from .legend import Entry, legend_below

_SMALLEST = 0.75  # share of the font size down to which names shrink before they are cut
_NARROWEST = 6.0  # font sizes that a name may take, however small its region


def draw_regions(
    image: np.ndarray, boxes: Any, labels: Any, scores: Any, vocabulary: Any, *, score_thr: float = 0.0
) -> np.ndarray:
    """Regions with the class that a model retrieved for each, and its confidence in percent.

    Outlines and names have the colour of the class, saturated for things and muted for stuff. Regions that do not
    exceed the threshold, which `DecoupledAlignmentLoss` would drop, are dashed and grey. A legend says so. Small images
    are enlarged.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
        boxes: ``(N, 4)`` xyxy in px of the image, such as `grid_boxes`.
        labels: ``(N,)`` class indices.
        scores: ``(N,)`` confidences in 0..1.
        vocabulary: Their classes: a `Vocabulary` or anything that `build_vocabulary` takes.
        score_thr: Confidence that a region must exceed; 0 keeps all.

    Returns:
        RGB uint8, the picture above its legend.

    Raises:
        ValueError: If the image is of another kind, or boxes, labels, scores and vocabulary do not fit each other.
    """
    vocabulary = build_vocabulary(vocabulary)
    factor = enlargement(check_image(image))
    picture = enlarge(image, factor)
    size = font_size(picture)
    regions = read_instances(boxes, labels, scores, vocabulary, picture, factor)
    kept = (regions.scores > score_thr) | (score_thr <= 0)
    colors = rgb_colors(vocabulary)
    region_colors = [colors[label] if keep else GREY for label, keep in zip(regions.labels, kept, strict=True)]
    visualizer = start_drawing(picture)
    for chosen, width, style in ((np.flatnonzero(~kept), 0.1, '--'), (np.flatnonzero(kept), 0.25, '-')):
        outline(
            visualizer, regions.boxes[chosen], [region_colors[i] for i in chosen], [width * size] * len(chosen), style
        )
    names = [display_name(vocabulary.names[label]) for label in regions.labels]
    _write_names(visualizer, regions, names, region_colors, size)
    entries = kind_entries(vocabulary)
    if score_thr > 0:
        entries.append(Entry(f'dropped (not above {score_thr:.0%})'.replace('%', ' %'), (GREY,), (0.1 * size, '--')))
    return stack_rows([visualizer.get_image(), legend_below(entries, picture.shape[1], size)])


def _write_names(visualizer: Any, regions: Instances, names: list[str], colors: list[Color], size: float) -> None:
    """Names and confidences at the top left of each region, in one font size in px, as large as lets most fit."""
    if not names:
        return
    margin = 0.4 * size
    widths = np.maximum(regions.boxes[:, 2] - regions.boxes[:, 0] - 2 * margin, _NARROWEST * _SMALLEST * size)
    fit = min(width / max(text_size(name, size)[0], 1) for name, width in zip(names, widths, strict=True))
    size *= min(max(fit, _SMALLEST), 1.0)
    texts = [
        _text(name, f'{100 * score:.0f} %', width, size)
        for name, score, width in zip(names, regions.scores, widths, strict=True)
    ]
    extents = np.array([text_size(text, size) for text in texts])
    limits = np.array([visualizer.width, visualizer.height]) - extents - margin
    write(
        visualizer,
        texts,
        np.maximum(np.minimum(regions.boxes[:, :2] + margin, limits), 0),
        size,
        backgrounds=colors,
    )


def _text(name: str, share: str, width: float, size: float) -> str:
    """Name and confidence in one line where there is room, else in two."""
    line = f'{name} {share}'
    return line if text_size(line, size)[0] <= width else f'{cut_text(name, width, size)}\n{share}'
