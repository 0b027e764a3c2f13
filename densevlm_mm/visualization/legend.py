"""Legends, as images of their own that are put below or beside a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .canvas import GREY, WHITE, Color, blank, cut_text, outline, start_drawing, text_size, write

_SWATCH = (1.6, 0.9)  # width and height, in font sizes
_ROW = 1.5  # height of a row, in font sizes
_GAP = 0.6  # between what is beside each other, in font sizes
_LONGEST_NAME = 20.0  # in font sizes


@dataclass(frozen=True)
class Entry:
    """A line of a legend.

    Attributes:
        text: What it says.
        colors: Colours of its swatch, side by side; one if it has a line.
        line: Width in px and matplotlib's style of the outline that is shown; None for filled colours.
        value: What stands at the right end, in legends beside a picture.
    """

    text: str
    colors: tuple[Color, ...]
    line: tuple[float, str] | None = None
    value: str = ''


def legend_below(entries: Sequence[Entry], width: int, size: float) -> np.ndarray:
    """Entries one after the other, in as many rows as they need.

    Args:
        entries: What to list.
        width: Of the picture, in px.
        size: Font size in px.

    Returns:
        ``(H, width, 3)`` uint8; of no height if there is nothing to list.
    """
    indent = (_SWATCH[0] + _GAP) * size
    corners, texts, left, top = [], [], _GAP * size, _GAP / 2 * size
    for entry in entries:
        text = cut_text(entry.text, width - indent - 2 * _GAP * size, size)
        needed = indent + text_size(text, size)[0]
        if corners and left + needed + _GAP * size > width:
            left, top = _GAP * size, top + _ROW * size
        corners.append((left, top))
        texts.append(text)
        left += needed + 2 * _GAP * size
    strip = blank(top + (_ROW + _GAP / 2) * size if entries else 0, width)
    return _draw(strip, entries, texts, corners, size) if entries else strip


def legend_beside(entries: Sequence[Entry], size: float) -> np.ndarray:
    """Entries below each other, with their values aligned at the right.

    Args:
        entries: What to list.
        size: Font size in px.

    Returns:
        ``(H, W, 3)`` uint8; of no width if there is nothing to list.
    """
    if not entries:
        return blank(0, 0)
    texts = [cut_text(entry.text, _LONGEST_NAME * size, size) for entry in entries]
    indent = (_SWATCH[0] + _GAP) * size
    value_widths = [text_size(entry.value, size)[0] for entry in entries]
    right = _GAP * size + indent + max(text_size(text, size)[0] for text in texts) + _GAP * size + max(value_widths)
    corners = [(_GAP * size, (_GAP / 2 + _ROW * row) * size) for row in range(len(entries))]
    image = blank((_ROW * len(entries) + _GAP) * size, right + _GAP * size)
    image = _draw(image, entries, texts, corners, size)
    visualizer = start_drawing(image)
    ends = [(right - width, top + _text_offset(size)) for width, (_, top) in zip(value_widths, corners, strict=True)]
    write(visualizer, [entry.value for entry in entries], ends, size)
    return visualizer.get_image()


def heading(text: str, width: int, size: float) -> np.ndarray:
    """A line of text above a part of a picture, cut to its width: ``(H, width, 3)`` uint8."""
    strip = blank(_ROW * size, width)
    if not text:
        return strip
    visualizer = start_drawing(strip)
    write(visualizer, [cut_text(text, width - size / 4, size)], [(size / 8, _text_offset(size))], size)
    return visualizer.get_image()


def _draw(
    image: np.ndarray,
    entries: Sequence[Entry],
    texts: Sequence[str],
    corners: Sequence[tuple[float, float]],
    size: float,
) -> np.ndarray:
    image = image.copy()
    boxes = [_swatch(corner, size) for corner in corners]
    for entry, box in zip(entries, boxes, strict=True):
        if entry.line is None:
            _fill(image, box, entry.colors)
        elif entry.line[1] == '-':
            _frame(image, box, entry.colors[0], entry.line[0])
    visualizer = start_drawing(image)
    for entry, box in zip(entries, boxes, strict=True):
        if entry.line is not None and entry.line[1] != '-':
            outline(visualizer, np.array([box], float), entry.colors, [entry.line[0]], entry.line[1])
    indent = (_SWATCH[0] + _GAP) * size
    write(visualizer, texts, [(left + indent, top + _text_offset(size)) for left, top in corners], size)
    return visualizer.get_image()


def _swatch(corner: tuple[float, float], size: float) -> tuple[int, int, int, int]:
    left, top = corner[0], corner[1] + (_ROW - _SWATCH[1]) / 2 * size
    return round(left), round(top), round(left + _SWATCH[0] * size), round(top + _SWATCH[1] * size)


def _fill(image: np.ndarray, box: tuple[int, int, int, int], colors: Sequence[Color]) -> None:
    left, top, right, bottom = box
    right = min(right, image.shape[1])  # a narrow picture has no room for a swatch
    if left >= right:
        return
    edges = np.linspace(left, right, len(colors) + 1).round().astype(int)
    for color, start, end in zip(colors, edges[:-1], edges[1:], strict=True):
        image[top:bottom, start:end] = color
    image[[top, bottom - 1], left:right] = image[top:bottom, [left, right - 1]] = GREY


def _frame(image: np.ndarray, box: tuple[int, int, int, int], color: Color, width: float) -> None:
    """A solid outline; the Visualizer allows no thick one in images as small as legends."""
    left, top, right, bottom = box
    line = max(1, round(width))
    image[top:bottom, left:right] = color
    image[top + line : bottom - line, left + line : right - line] = WHITE


def _text_offset(size: float) -> float:
    """From the top of a row to that of its text."""
    return (_ROW - 1.0) / 2 * size
