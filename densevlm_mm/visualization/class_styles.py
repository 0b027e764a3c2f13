"""How classes look in pictures: things saturated, stuff muted."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np

from densevlm_mm.vlm import Vocabulary

from .canvas import Color
from .legend import Entry

_GOLDEN = (5**0.5 - 1) / 2
_CIRCLE = 12  # hues that can be told apart; further classes go round again with other saturation and value
_THINGS = ((0.95, 0.95), (0.95, 0.62), (0.65, 1.0), (1.0, 0.42))
_STUFF = ((0.35, 0.62), (0.3, 0.85), (0.4, 0.42), (0.15, 0.72))


def class_colors(is_thing: Sequence[bool]) -> np.ndarray:
    """RGB colours in 0..1, ``(K, 3)``: saturated for things, muted for stuff; classes in a row differ most."""
    colors = np.zeros((len(is_thing), 3))
    for kind, looks in ((True, _THINGS), (False, _STUFF)):
        members = [i for i, flag in enumerate(is_thing) if bool(flag) is kind]
        for rank, index in enumerate(members):
            colors[index] = matplotlib.colors.hsv_to_rgb([rank * _GOLDEN % 1, *looks[rank // _CIRCLE % len(looks)]])
    return colors


def rgb_colors(vocabulary: Vocabulary) -> list[Color]:
    """`class_colors` in 0..255."""
    return [tuple(int(channel) for channel in color) for color in (255 * class_colors(vocabulary.is_thing)).round()]


def kind_entries(vocabulary: Vocabulary) -> list[Entry]:
    """Lines of a legend that say which colours are things and which are stuff."""
    colors = rgb_colors(vocabulary)
    entries = []
    for kind, text in ((True, 'thing (saturated)'), (False, 'stuff (muted)')):
        shown = tuple(color for color, flag in zip(colors, vocabulary.is_thing, strict=True) if flag is kind)[:4]
        if shown:
            entries.append(Entry(text, shown))
    return entries
