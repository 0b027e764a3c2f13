"""Where an image is similar to which text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from mmengine.visualization.utils import tensor2ndarray
from PIL import Image

from .canvas import blank, check_image, cut_text, fit_panel, stack_columns, stack_rows, start_drawing, text_size, write
from .legend import heading

_COLORMAP = 'turbo'
_OPACITY = 0.6
_PANEL, _SMALL_PANEL = 640, 448  # px of the longest side, or so; small ones from five panels on
_GAP = 8  # px


def draw_similarity(image: np.ndarray, maps: Any, names: Sequence[str]) -> np.ndarray:
    """Heat maps of cosines over the image, a panel for each query.

    All panels share one scale, from the lowest to the highest cosine of all maps, so that they can be compared: the
    colour bar below shows it. The heading of a panel has the range of its own map.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
        maps: ``(N, h, w)`` cosines over the whole image, of any size; resized bilinearly to that of the image.
        names: The N queries.

    Returns:
        RGB uint8.

    Raises:
        ValueError: If the image is of another kind, there is no map, or not one name for each.
    """
    maps = np.asarray(tensor2ndarray(maps), dtype=np.float32)
    if maps.ndim != 3 or not maps.size or len(maps) != len(names):
        raise ValueError(f'maps (N, h, w) with one name each are needed, got {maps.shape} and {len(names)} names')
    longest = _PANEL if len(maps) <= 4 else _SMALL_PANEL
    check_image(image)
    size = max(14.0, 0.024 * longest)
    low, high = float(maps.min()), float(maps.max())
    panels = []
    for name, values in zip(names, maps, strict=True):
        panel = fit_panel(_heat(image, values, low, high), longest)
        panels.append(stack_rows([_panel_heading(name, values, panel.shape[1], size), panel]))
    columns = _columns(len(panels), image.shape[1] / image.shape[0])
    rows = [stack_columns(panels[i : i + columns], _GAP) for i in range(0, len(panels), columns)]
    picture = stack_rows(rows)
    return stack_rows([picture, _color_bar(low, high, picture.shape[1], size)])


def _columns(count: int, aspect: float) -> int:
    """Panels side by side such that the picture is about as wide as high, or somewhat wider, with full rows."""
    columns = min(count, max(1, round(np.sqrt(1.5 * count / aspect))))
    rows = -(-count // columns)
    return -(-count // rows)


def _panel_heading(name: str, values: np.ndarray, width: int, size: float) -> np.ndarray:
    extent = f'  {values.min():.2f} .. {values.max():.2f}'
    return heading(cut_text(name, width - text_size(extent, size)[0] - size, size) + extent, width, size)


def _heat(image: np.ndarray, values: np.ndarray, low: float, high: float) -> np.ndarray:
    """The image, grey, under the colours of the values; ``(H, W, 3)`` uint8."""
    values = np.asarray(Image.fromarray(values).resize(image.shape[1::-1], Image.Resampling.BILINEAR))
    colors = _colors((values - low) / max(high - low, 1e-12))
    grey = np.asarray(Image.fromarray(image).convert('L'))[..., None]
    return (_OPACITY * colors + (1 - _OPACITY) * grey).round().astype(np.uint8)


def _colors(shares: np.ndarray) -> np.ndarray:
    """Colours ``(..., 3)`` in 0..255 of values in 0..1."""
    return 255 * matplotlib.colormaps[_COLORMAP](shares.clip(0, 1))[..., :3]


def _color_bar(low: float, high: float, width: int, size: float) -> np.ndarray:
    """A strip with the colours of the scale between its ends, and what it measures."""
    ends = (f'{low:.2f}', f'{high:.2f}')
    left, right = (text_size(text, size)[0] + size for text in ends)
    text = cut_text('cosine with the query; one scale for all panels', width - 2 * size, size)
    strip = blank(3.4 * size, width)
    bar = slice(round(0.6 * size), round(1.6 * size)), slice(round(left), round(width - right))
    strip[bar] = _colors(np.linspace(0, 1, strip[bar].shape[1]))[None].round()
    visualizer = start_drawing(strip)
    corners = [(0.4 * size, 0.5 * size), (width - right + 0.6 * size, 0.5 * size), (left, 1.9 * size)]
    write(visualizer, [*ends, text], corners, size)
    return visualizer.get_image()
