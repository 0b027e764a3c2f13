"""What all pictures share: enough pixels, readable text, and parts put together. mmengine's Visualizer draws."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.font_manager import FontProperties
from mmengine.visualization import Visualizer
from PIL import Image

Color = tuple[int, int, int]  # RGB, 0..255

GREY: Color = (128, 128, 128)
WHITE: Color = (255, 255, 255)
BLACK: Color = (0, 0, 0)
_MIN_SIDE = 640  # px; below, neither names nor lines fit
# The Visualizer limits lines to 1..2.5 points in small pictures; with these points that is 2..5 px.
_DPI = 144
_PX_PER_POINT = _DPI / 72
_LINE_HEIGHT = 1.2  # of text, in font sizes; matplotlib's


def check_image(image: np.ndarray) -> np.ndarray:
    """Return the image.

    Raises:
        ValueError: It is not RGB of 8 bits, ``(H, W, 3)`` uint8.
    """
    if not (isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8):
        found = f'{image.dtype} {image.shape}' if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f'an image to draw on is RGB, uint8 (H, W, 3), got {found}')
    return image


def enlargement(image: np.ndarray, longest: int = _MIN_SIDE) -> int:
    """Whole factor by which the longest side of an image gets at least so many px."""
    return max(1, -(-longest // max(image.shape[:2])))


def enlarge(pixels: np.ndarray, factor: int) -> np.ndarray:
    """Repeat every pixel of ``(H, W, ...)``, so that all stay as sharp as they were."""
    return pixels if factor == 1 else pixels.repeat(factor, 0).repeat(factor, 1)


def fit_panel(image: np.ndarray, longest: int) -> np.ndarray:
    """One image of several in a picture: enlarged by a whole factor, or shrunk until its longest side fits."""
    image = enlarge(image, max(1, longest // max(image.shape[:2])))
    height, width = image.shape[:2]
    scale = longest / max(height, width)
    if scale >= 1:
        return image
    sides = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(image).resize(sides, Image.Resampling.BOX))


def font_size(image: np.ndarray) -> float:
    """Size of text for a picture, in px."""
    return max(14.0, 0.024 * float(np.sqrt(image.shape[0] * image.shape[1])))


def start_drawing(image: np.ndarray) -> Visualizer:
    """A Visualizer with the image, which must be on the main process."""
    visualizer = Visualizer(fig_save_cfg={'frameon': False, 'dpi': _DPI})
    visualizer.set_image(image)
    return visualizer


def blank(height: float, width: float) -> np.ndarray:
    """White ``(H, W, 3)``, sides in px rounded up."""
    return np.full((int(np.ceil(height)), int(np.ceil(width)), 3), 255, np.uint8)


def pad_to(image: np.ndarray, *, height: int = 0, width: int = 0) -> np.ndarray:
    """Extend an image by white at the bottom and at the right to at least this height and width."""
    missing = [max(0, wanted - side) for wanted, side in zip((height, width), image.shape[:2], strict=True)]
    return np.pad(image, ((0, missing[0]), (0, missing[1]), (0, 0)), constant_values=255)


def stack_rows(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Images below each other, as wide as the widest."""
    width = max(part.shape[1] for part in parts)
    return np.concatenate([pad_to(part, width=width) for part in parts])


def stack_columns(parts: Sequence[np.ndarray], gap: int = 0) -> np.ndarray:
    """Images beside each other, as high as the highest, with a gap of so many px between them."""
    height = max(part.shape[0] for part in parts)
    spaced = [pad_to(part, height=height, width=part.shape[1] + gap) for part in parts[:-1]]
    return np.concatenate([*spaced, pad_to(parts[-1], height=height)], axis=1)


def text_size(text: str, size: float) -> tuple[float, float]:
    """Width and height in px of a text, which may have several lines, in a font size in px."""
    lines = text.split('\n')
    return max(_line_width(line, size) for line in lines), _LINE_HEIGHT * size * len(lines)


def cut_text(text: str, width: float, size: float) -> str:
    """The text, with its end replaced by an ellipsis if it is wider than so many px in this font size."""
    if _line_width(text, size) <= width:
        return text
    fitting = (text[:length].rstrip() + '…' for length in range(len(text) - 1, 0, -1))
    return next((cut for cut in fitting if _line_width(cut, size) <= width), '…')


def display_name(name: str) -> str:
    """First synonym of a class name, which data sets separate by commas."""
    return name.split(',')[0].strip()


def text_color(background: Color) -> Color:
    """Black or white, whichever contrasts."""
    return BLACK if np.dot(background, (0.299, 0.587, 0.114)) > 115 else WHITE


def write(
    visualizer: Visualizer,
    texts: Sequence[str],
    corners: Sequence[tuple[float, float]],
    size: float,
    *,
    backgrounds: Sequence[Color] | None = None,
) -> None:
    """Draw texts.

    Args:
        visualizer: What draws.
        texts: N texts, which may have several lines.
        corners: Left and top of each in px.
        size: Font size in px.
        backgrounds: Colours behind them, a text's own box each; None for black on whatever is there.
    """
    if not texts:
        return
    boxes = None
    if backgrounds is not None:
        faces = [tuple(channel / 255 for channel in color) for color in backgrounds]
        boxes = [{'facecolor': face, 'edgecolor': 'none', 'boxstyle': 'square,pad=0.1'} for face in faces]
    visualizer.draw_texts(
        [text.replace('$', r'\$') for text in texts],  # no name is a formula
        np.array(corners, float),
        font_sizes=size / _PX_PER_POINT,
        colors=[text_color(color) for color in backgrounds or [WHITE] * len(texts)],
        bboxes=boxes,
    )


def outline(
    visualizer: Visualizer, boxes: np.ndarray, colors: Sequence[Color], widths: Sequence[float], style: str = '-'
) -> None:
    """Draw the outlines of boxes, inside of them, so that neighbours do not cover each other.

    Args:
        visualizer: What draws.
        boxes: ``(N, 4)`` xyxy in px.
        colors: N colours.
        widths: N line widths in px.
        style: Of matplotlib: '-' solid, '--' dashed.
    """
    if not len(boxes):
        return
    half = np.minimum(np.array(widths)[:, None] / 2, (boxes[:, 2:] - boxes[:, :2]) / 2)
    inner = np.concatenate([boxes[:, :2] + half, boxes[:, 2:] - half], axis=1)
    widths = [width / _PX_PER_POINT for width in widths]
    visualizer.draw_bboxes(inner, edge_colors=list(colors), line_styles=style, line_widths=widths, alpha=1.0)


@lru_cache(maxsize=8192)
def _line_width(text: str, size: float) -> float:
    properties = FontProperties(size=size / _PX_PER_POINT)
    return _renderer().get_text_width_height_descent(text, properties, ismath=False)[0]


@lru_cache(maxsize=1)
def _renderer() -> RendererAgg:
    return RendererAgg(1, 1, _DPI)
