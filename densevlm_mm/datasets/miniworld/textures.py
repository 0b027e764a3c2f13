"""The stuff of the mini world: textures in pairs of like colour.

Each texture is a *pattern*, a field of mean 0 and standard deviation 1 that modulates the brightness of a
colour. Two classes share each colour, so that only the pattern tells them apart. Lengths are in *units* of
1/64 of the short side of an image: a world of twice the size looks the same, only finer.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .classes import STUFF

Pattern = Callable[['Canvas'], np.ndarray]


@dataclass(frozen=True)
class Canvas:
    """Where a pattern is painted and what it draws its randomness from."""

    rng: np.random.Generator
    height: int
    width: int
    pixels_per_unit: float

    def noise(self, across: float, along: float, angle: float = 0.0) -> np.ndarray:
        """Smooth noise (H, W): bicubic between normal values ``across`` and ``along`` units apart."""
        steps = across * self.pixels_per_unit, along * self.pixels_per_unit
        diagonal = math.hypot(self.height, self.width)
        columns, rows = (math.ceil(diagonal / step) + 4 for step in steps)
        lattice = Image.fromarray(self.rng.standard_normal((rows, columns), dtype=np.float32))
        # Output pixel -> lattice point: (x, y) -> (a x + b y + c, d x + e y + f), centre to centre.
        a, b = math.cos(angle) / steps[0], math.sin(angle) / steps[0]
        d, e = -math.sin(angle) / steps[1], math.cos(angle) / steps[1]
        x, y = self.width / 2, self.height / 2
        transform = (a, b, columns / 2 - a * x - b * y, d, e, rows / 2 - d * x - e * y)
        method, filtering = Image.Transform.AFFINE, Image.Resampling.BICUBIC
        return np.asarray(lattice.transform((self.width, self.height), method, transform, filtering))

    def axes(self, angle: float) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates (H, W) in units along ``angle`` and perpendicular to it."""
        x = np.arange(self.width, dtype=np.float32) / self.pixels_per_unit
        y = np.arange(self.height, dtype=np.float32)[:, None] / self.pixels_per_unit
        cos, sin = math.cos(angle), math.sin(angle)
        return cos * x + sin * y, cos * y - sin * x

    def scale(self) -> float:
        """A random factor for the lengths of a pattern."""
        return float(self.rng.uniform(0.8, 1.25))


def paint_texture(
    rng: np.random.Generator,
    name: str,
    *,
    height: int,
    width: int,
    pixels_per_unit: float,
    texture_noise: float,
) -> np.ndarray:
    """Paint one stuff class over a whole image.

    Args:
        rng: Source of colour, scale, orientation and the pattern itself.
        name: One of ``STUFF``.
        height: Height in pixels.
        width: Width in pixels.
        pixels_per_unit: Pixels per 1/64 of the short side of a standard image.
        texture_noise: How confusable the classes are, in [0, 1]. It widens the spread of colours, lowers the
            contrast and mixes in the pattern of another class.

    Returns:
        (H, W, 3) float32, about [0, 255] but not clipped.
    """
    canvas = Canvas(rng, height, width, pixels_per_unit)
    hue, saturation, value = COLOURS[name] + texture_noise * rng.uniform(-1, 1, 3) * (0.06, 0.15, 0.2)
    colour = np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value), dtype=np.float32) * 255
    other = STUFF[(STUFF.index(name) + rng.integers(1, len(STUFF))) % len(STUFF)]
    share = texture_noise * rng.uniform(0, 0.7)
    pattern = math.sqrt(1 - share**2) * _standardised(PATTERNS[name](canvas))
    pattern += share * _standardised(PATTERNS[other](canvas))
    contrast = 0.22 * (1 - texture_noise * rng.uniform(0, 0.7))
    return colour * (1 + contrast * pattern)[:, :, None]


def _standardised(field: np.ndarray) -> np.ndarray:
    centred = field - field.mean()
    return centred / max(float(centred.std()), 1e-6)


def _grass(canvas: Canvas) -> np.ndarray:
    """Upright blades: noise that is much longer than wide."""
    scale = canvas.scale()
    return canvas.noise(1.3 * scale, 7 * scale, canvas.rng.uniform(-0.5, 0.5))


def _moss(canvas: Canvas) -> np.ndarray:
    """Round cushions without orientation."""
    scale = canvas.scale()
    return canvas.noise(3.5 * scale, 3.5 * scale, canvas.rng.uniform(0, math.pi))


def _wood(canvas: Canvas) -> np.ndarray:
    """Straight grain: stripes of any direction with a sharp dark edge, hardly bent."""
    angle = canvas.rng.uniform(0, math.pi)
    across, _ = canvas.axes(angle)
    period = 5 * canvas.scale()
    return (across / period + 0.35 * canvas.noise(14, 30, angle) + canvas.rng.random()) % 1


def _earth(canvas: Canvas) -> np.ndarray:
    """Crumbs: hard-edged grains."""
    grain = 2 * canvas.scale()
    return np.tanh(2.5 * canvas.noise(grain, grain, canvas.rng.uniform(0, math.pi)))


def _sky(canvas: Canvas) -> np.ndarray:
    """Clouds: hardly anything but slow changes."""
    scale = canvas.scale()
    return canvas.noise(20 * scale, 12 * scale) + 0.1 * canvas.noise(4, 4)


def _water(canvas: Canvas) -> np.ndarray:
    """Ripples: wavy stripes, more or less level."""
    along, across = canvas.axes(canvas.rng.uniform(-0.5, 0.5))
    period, length = 6 * canvas.scale(), 16 * canvas.scale()
    bend = 1.6 * np.sin(math.tau * (along / length + canvas.rng.random()))
    return np.sin(math.tau * ((across + bend) / period + canvas.rng.random()))


def _sand(canvas: Canvas) -> np.ndarray:
    """Fine grains on slow dunes."""
    return canvas.noise(1, 1) + 0.4 * canvas.noise(16, 8, canvas.rng.uniform(-0.5, 0.5))


def _stone(canvas: Canvas) -> np.ndarray:
    """Pavers: a bond of blocks with dark joints."""
    along, across = canvas.axes(canvas.rng.uniform(-0.5, 0.5))
    course, block = 7 * canvas.scale(), 11 * canvas.scale()
    row = across / course + canvas.rng.random()
    column = along / block + canvas.rng.random() + 0.5 * (np.floor(row) % 2)
    joint = ((row % 1) * course < 1.5) | ((column % 1) * block < 1.5)
    return 0.25 * canvas.noise(1, 1) - 1.5 * joint


PATTERNS: dict[str, Pattern] = {
    'grass': _grass,
    'moss': _moss,
    'wood': _wood,
    'earth': _earth,
    'sky': _sky,
    'water': _water,
    'sand': _sand,
    'stone': _stone,
}

_GREEN, _BROWN, _BLUE, _BEIGE = (0.29, 0.6, 0.5), (0.08, 0.55, 0.5), (0.58, 0.5, 0.7), (0.11, 0.25, 0.68)
# name -> centre of (hue, saturation, value); the two classes of a pair share it.
COLOURS: dict[str, np.ndarray] = {
    name: np.array(colour)
    for colour, pair in (
        (_GREEN, ('grass', 'moss')),
        (_BROWN, ('wood', 'earth')),
        (_BLUE, ('sky', 'water')),
        (_BEIGE, ('sand', 'stone')),
    )
    for name in pair
}
