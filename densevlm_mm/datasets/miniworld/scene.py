"""One image of the mini world with its exact panoptic map."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .classes import CATEGORIES, STUFF, THINGS, Category
from .shapes import draw_thing
from .textures import paint_texture

# Longer side of a thing's box, as a share of the image's short side.
THING_SIDE = (0.32, 0.5)
# What later things must leave visible: of every earlier thing, and of the image for every stuff region.
MIN_VISIBLE_THING = 0.85
MIN_VISIBLE_STUFF = 0.05
# More segments than this crowd the image and its captions.
MAX_SEGMENTS = 5
MIN_SIZE = 32

_CATEGORY = {category.name: category for category in CATEGORIES}


@dataclass(frozen=True)
class Segment:
    """One region of a scene; ``id`` is its value in the segment map."""

    id: int
    category: Category


@dataclass(frozen=True)
class Scene:
    """An image (H, W, 3) uint8, its segment map (H, W) int32 and the segments in it, stuff first."""

    image: np.ndarray
    segment_map: np.ndarray
    segments: tuple[Segment, ...]

    @property
    def things(self) -> tuple[str, ...]:
        """Names of the things, in the order of painting."""
        return tuple(segment.category.name for segment in self.segments if segment.category.isthing)

    @property
    def stuff(self) -> tuple[str, ...]:
        """Names of the stuff regions."""
        return tuple(segment.category.name for segment in self.segments if not segment.category.isthing)


def render_scene(
    rng: np.random.Generator,
    *,
    size: tuple[int, int] = (64, 64),
    oblong: float = 0.25,
    texture_noise: float = 0.5,
) -> Scene:
    """Render 1-3 things of different classes on two, sometimes three, different stuff regions.

    Args:
        rng: The only source of randomness; it is advanced.
        size: (width, height) in pixels, at least 32 each.
        oblong: Share of images, in [0, 1], of which one side is cut to 3/4.
        texture_noise: How confusable the stuff is, in [0, 1].

    Raises:
        ValueError: An argument lies outside its range.
    """
    check_scene_options(size=size, oblong=oblong, texture_noise=texture_noise)
    width, height = _draw_size(rng, size, oblong)
    num_regions = 3 if rng.random() < 0.2 else 2
    num_things = min(rng.integers(1, 4), MAX_SEGMENTS - num_regions)
    stuff = [STUFF[index] for index in rng.permutation(len(STUFF))[:num_regions]]
    things = [THINGS[index] for index in rng.permutation(len(THINGS))[:num_things]]

    labels = _split_regions(rng, height=height, width=width, num_regions=num_regions)
    image = np.empty((height, width, 3), dtype=np.float32)
    for label, name in enumerate(stuff):
        texture = paint_texture(
            rng, name, height=height, width=width, pixels_per_unit=min(size) / 64, texture_noise=texture_noise
        )
        np.copyto(image, texture, where=(labels == label)[:, :, None])
    placed = _place_things(rng, image, labels, things)

    segments = tuple(Segment(_CATEGORY[name].segment_id, _CATEGORY[name]) for name in (*stuff, *placed))
    ids = np.array([segment.id for segment in segments], dtype=np.int32)
    return Scene(np.clip(np.rint(image), 0, 255).astype(np.uint8), ids[labels], segments)


def check_scene_options(*, size: tuple[int, int], oblong: float, texture_noise: float) -> None:
    """Raise a ValueError that names the option of ``render_scene`` which lies outside its range."""
    if len(size) != 2 or min(size) < MIN_SIZE or any(side != int(side) for side in size):
        raise ValueError(f'size must be (width, height) in pixels, whole and at least {MIN_SIZE}, got {size}')
    for name, share in (('oblong', oblong), ('texture_noise', texture_noise)):
        if not 0 <= share <= 1:
            raise ValueError(f'{name} must lie in [0, 1], got {share}')


def _draw_size(rng: np.random.Generator, size: tuple[int, int], oblong: float) -> tuple[int, int]:
    width, height = size
    cut, horizontal = rng.random(2)
    if cut >= oblong:
        return width, height
    return (width, height * 3 // 4) if horizontal < 0.5 else (width * 3 // 4, height)


def _split_regions(rng: np.random.Generator, *, height: int, width: int, num_regions: int) -> np.ndarray:
    """Labels (H, W) intp of stuff regions, each at least a fifth of the image."""
    labels = np.zeros((height, width), dtype=np.intp)
    _cut(rng, labels, label=1, share=rng.uniform(0.35, 0.5))
    if num_regions == 3:
        # Region 0 is the larger one: at least half of the image.
        _cut(rng, labels, label=2, share=rng.uniform(0.42, 0.58))
    return labels


def _cut(rng: np.random.Generator, labels: np.ndarray, *, label: int, share: float) -> None:
    """Give ``share`` of region 0 to ``label``, beyond a wavy line at a random angle."""
    height, width = labels.shape
    short = min(height, width)
    angle = rng.uniform(0, math.tau)
    x = np.arange(width, dtype=np.float32) / short
    y = np.arange(height, dtype=np.float32)[:, None] / short
    across = math.cos(angle) * x + math.sin(angle) * y
    along = math.cos(angle) * y - math.sin(angle) * x
    for amplitude, wavelength in ((0.07, 0.9), (0.03, 0.35)):
        phase = along / (wavelength * rng.uniform(0.8, 1.25)) + rng.random()
        across = across + amplitude * rng.uniform(0.3, 1) * np.sin(math.tau * phase)
    inside = labels == 0
    labels[inside & (across > np.quantile(across[inside], 1 - share))] = label


def _place_things(rng: np.random.Generator, image: np.ndarray, labels: np.ndarray, things: list[str]) -> list[str]:
    """Paint things into ``image`` and ``labels``; return those that found room.

    The first one always does: the smallest thing hides less of any region than the region can spare.
    """
    floors = [MIN_VISIBLE_STUFF * labels.size] * (int(labels.max()) + 1)
    placed = []
    for name in things:
        spot = _find_room(rng, name, labels, np.array(floors))
        if spot is None:
            continue
        window, colour, coverage = spot
        opaque = coverage >= 0.5
        labels[window][opaque] = len(floors)
        image[window] += coverage[:, :, None] * (colour - image[window])
        floors.append(MIN_VISIBLE_THING * np.count_nonzero(opaque))
        placed.append(name)
    return placed


def _find_room(
    rng: np.random.Generator, name: str, labels: np.ndarray, floors: np.ndarray
) -> tuple[tuple[slice, slice], np.ndarray, np.ndarray] | None:
    """Draw a thing and find a place where every label keeps at least its floor of visible pixels.

    Returns:
        window of the image, colour (h, w, 3) and coverage (h, w); or None.
    """
    height, width = labels.shape
    spare = np.bincount(labels.ravel(), minlength=len(floors)) - floors
    smallest, largest = THING_SIDE
    for shrinkage in (1, 0.6, 0.3, 0):
        side = smallest + (largest - smallest) * shrinkage * rng.random()
        colour, coverage = draw_thing(rng, name, side * min(height, width))
        opaque = coverage >= 0.5
        rows, columns = opaque.shape
        for _ in range(8):
            top, left = rng.integers(0, height - rows + 1), rng.integers(0, width - columns + 1)
            window = np.s_[top : top + rows, left : left + columns]
            hidden = np.bincount(labels[window][opaque], minlength=len(floors))
            if (hidden <= spare).all():
                return window, colour, coverage
    return None
