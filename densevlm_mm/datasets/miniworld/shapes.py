"""The things of the mini world, drawn from polygons.

A thing is recognised by its silhouette and parts. Its hue is drawn around a centre of its class, but so
widely that neighbouring classes overlap.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from .classes import THINGS

Point = tuple[float, float]
Part = tuple[str, Sequence[Point]]

SUPERSAMPLING = 3
# Centres of neighbouring classes lie 0.1 apart on the hue circle: each class overlaps four others.
HUE_JITTER = 0.12


def draw_thing(rng: np.random.Generator, name: str, side: float) -> tuple[np.ndarray, np.ndarray]:
    """Draw one thing in a random colour, mirrored or not.

    Args:
        rng: Source of the colour and the mirroring.
        name: One of ``THINGS``.
        side: Length of the longer side of its box, in pixels.

    Returns:
        colour (h, w, 3) float32 in [0, 255] and coverage (h, w) float32 in [0, 1]; the longer of h and w is
        ``side``, rounded.
    """
    aspect, parts = SHAPES[name]
    width = max(1, round(side * min(1.0, aspect)))
    height = max(1, round(side * min(1.0, 1 / aspect)))
    palette = _palette(rng, THINGS.index(name) / len(THINGS))
    columns, rows = width * SUPERSAMPLING, height * SUPERSAMPLING
    # The canvas starts in the body's colour, so that a half covered rim keeps the thing's colour.
    colour = Image.new('RGB', (columns, rows), palette['body'])
    coverage = Image.new('L', (columns, rows))
    colour_pen, coverage_pen = ImageDraw.Draw(colour), ImageDraw.Draw(coverage)
    mirrored = rng.random() < 0.5
    for role, outline in parts:
        points = [((1 - x if mirrored else x) * (columns - 1), y * (rows - 1)) for x, y in outline]
        colour_pen.polygon(points, fill=palette[role])
        coverage_pen.polygon(points, fill=255)
    return (
        np.asarray(colour.reduce(SUPERSAMPLING), dtype=np.float32),
        np.asarray(coverage.reduce(SUPERSAMPLING), dtype=np.float32) / 255,
    )


def _palette(rng: np.random.Generator, hue_centre: float) -> dict[str, tuple[int, int, int]]:
    hue = (hue_centre + rng.uniform(-HUE_JITTER, HUE_JITTER)) % 1
    body = np.array(colorsys.hsv_to_rgb(hue, rng.uniform(0.6, 1), rng.uniform(0.6, 1))) * 255
    return {
        'body': tuple(int(channel) for channel in body),
        'shade': tuple(int(channel) for channel in body * 0.55),
        'dark': (28, 26, 34),
        'light': (244, 240, 228),
    }


def _box(x0: float, y0: float, x1: float, y1: float) -> list[Point]:
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def _arc(x: float, y: float, radius_x: float, radius_y: float, start: float = 0, stop: float = 1) -> list[Point]:
    """Points on an ellipse; ``start`` and ``stop`` in turns, clockwise from the right."""
    angles = [math.tau * (start + (stop - start) * step / 24) for step in range(25)]
    return [(x + radius_x * math.cos(angle), y + radius_y * math.sin(angle)) for angle in angles]


def _star(points: int, inner: float) -> list[Point]:
    """A star with its tip up that fills the unit square."""
    corners = []
    for step in range(2 * points):
        radius, angle = inner if step % 2 else 1.0, math.pi * step / points
        corners.append((radius * math.sin(angle), -radius * math.cos(angle)))
    left, top = (min(corner[axis] for corner in corners) for axis in (0, 1))
    right, bottom = (max(corner[axis] for corner in corners) for axis in (0, 1))
    return [((x - left) / (right - left), (y - top) / (bottom - top)) for x, y in corners]


def _petals(count: int) -> list[Part]:
    turns = [math.tau * petal / count for petal in range(count)]
    return [('body', _arc(0.5 + 0.3 * math.sin(t), 0.31 - 0.19 * math.cos(t), 0.2, 0.125)) for t in turns]


# name -> (width / height, parts in the order of painting); coordinates in [0, 1] of the box, y downwards.
# fmt: off
SHAPES: dict[str, tuple[float, list[Part]]] = {
    'car': (1.6, [
        ('body', [(0, 0.55), (0.2, 0.42), (0.34, 0), (0.74, 0), (0.86, 0.42), (1, 0.5), (1, 0.82),
                  (0, 0.82)]),
        ('light', [(0.29, 0.4), (0.38, 0.1), (0.52, 0.1), (0.52, 0.4)]),
        ('light', [(0.58, 0.4), (0.58, 0.1), (0.71, 0.1), (0.78, 0.4)]),
        ('dark', _arc(0.24, 0.8, 0.125, 0.2)),
        ('dark', _arc(0.76, 0.8, 0.125, 0.2)),
    ]),
    'house': (1.0, [
        ('body', _box(0.1, 0.4, 0.9, 1)),
        ('shade', [(0, 0.45), (0.5, 0), (1, 0.45)]),
        ('dark', _box(0.56, 0.62, 0.76, 1)),
        ('light', _box(0.22, 0.58, 0.44, 0.78)),
    ]),
    'tree': (0.75, [
        ('dark', _box(0.41, 0.75, 0.59, 1)),
        ('body', [(0, 0.85), (0.5, 0.35), (1, 0.85)]),
        ('shade', [(0.1, 0.56), (0.5, 0.15), (0.9, 0.56)]),
        ('body', [(0.22, 0.32), (0.5, 0), (0.78, 0.32)]),
    ]),
    'person': (0.55, [
        ('shade', [(0.28, 0.6), (0.72, 0.6), (0.82, 1), (0.58, 1), (0.5, 0.74), (0.42, 1), (0.18, 1)]),
        ('body', [(0.2, 0.28), (0.8, 0.28), (1, 0.62), (0.86, 0.66), (0.72, 0.45), (0.72, 0.66), (0.28, 0.66),
                  (0.28, 0.45), (0.14, 0.66), (0, 0.62)]),
        ('light', _arc(0.5, 0.14, 0.25, 0.14)),
    ]),
    'ball': (1.0, [
        ('body', _arc(0.5, 0.5, 0.5, 0.5)),
        ('light', [(0.02, 0.4), (0.98, 0.4), (0.98, 0.6), (0.02, 0.6)]),
        ('shade', _arc(0.5, 0.5, 0.16, 0.16)),
    ]),
    'star': (1.0, [('body', _star(5, 0.42))]),
    'fish': (1.6, [
        ('shade', [(0.62, 0.5), (1, 0.05), (0.92, 0.5), (1, 0.95)]),
        ('shade', [(0.25, 0.2), (0.45, 0), (0.6, 0.25)]),
        ('body', _arc(0.38, 0.55, 0.38, 0.44)),
        ('light', _arc(0.17, 0.45, 0.075, 0.12)),
        ('dark', _arc(0.16, 0.45, 0.035, 0.06)),
    ]),
    'cup': (0.95, [
        ('shade', _arc(0.66, 0.47, 0.34, 0.33, -0.25, 0.25) + _arc(0.66, 0.47, 0.19, 0.18, 0.25, -0.25)),
        ('body', [(0, 0.06), (0.74, 0.06), (0.64, 1), (0.1, 1)]),
        ('dark', _arc(0.37, 0.08, 0.37, 0.08)),
    ]),
    'boat': (1.1, [
        ('dark', _box(0.47, 0, 0.52, 0.75)),
        ('light', [(0.56, 0.06), (0.56, 0.62), (0.98, 0.62)]),
        ('shade', [(0.44, 0.16), (0.44, 0.62), (0.1, 0.62)]),
        ('body', [(0, 0.7), (1, 0.7), (0.82, 1), (0.18, 1)]),
    ]),
    'flower': (0.65, [
        ('shade', _box(0.46, 0.4, 0.55, 1)),
        ('shade', _arc(0.3, 0.82, 0.22, 0.07)),
        *_petals(6),
        ('light', _arc(0.5, 0.31, 0.16, 0.105)),
    ]),
}
# fmt: on
