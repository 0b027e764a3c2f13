"""Making class-agnostic proposals: a COCO-style file of boxes without labels."""

from __future__ import annotations

from collections import defaultdict
from zlib import crc32

import numpy as np

from .grids import grid_boxes

# Sides of random boxes, as shares of the image's: neither specks nor the whole image.
RANDOM_SIDES = (0.15, 0.6)


def propose_boxes(
    content: dict, *, keep: bool = True, random_boxes: int = 0, grid: tuple[int, int] | None = None, seed: int = 0
) -> dict:
    """Boxes of the images of a COCO-style file, without labels.

    Args:
        content: COCO-style file: ``images`` with ``width`` and ``height``, and ``annotations`` with ``bbox``.
        keep: Take the boxes of ``annotations``; their categories are left behind.
        random_boxes: Add so many random boxes per image, the same whatever the other images are.
        grid: Add the cells of a grid of so many ``(rows, columns)``.
        seed: Seed of the random boxes.

    Returns:
        COCO-style content: ``images`` as they were, and ``annotations`` with ``id``, ``image_id`` and ``bbox`` (xywh in
        px), image by image.

    Raises:
        ValueError: Keys are missing, or nothing was asked for.
    """
    if not (keep or random_boxes or grid):
        raise ValueError('no boxes are asked for: keep those of the file, or add random ones or a grid')
    kept = defaultdict(list)
    for number, annotation in enumerate(content.get('annotations', []) if keep else []):
        if missing := {'image_id', 'bbox'} - set(annotation):
            raise ValueError(f'annotations[{number}] has no {sorted(missing)}; a COCO-style instance file is needed')
        kept[annotation['image_id']].append(annotation['bbox'])
    annotations = []
    for number, image in enumerate(content.get('images', [])):
        if missing := {'id', 'width', 'height'} - set(image):
            raise ValueError(f'images[{number}] has no {sorted(missing)}; a COCO-style file is needed')
        boxes = [*kept[image['id']], *_random_boxes(image, random_boxes, seed)]
        if grid is not None:
            corners = grid_boxes(image['width'], image['height'], *grid)
            boxes += [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in corners.tolist()]
        annotations += [{'image_id': image['id'], 'bbox': box} for box in boxes]
    if not annotations:
        raise ValueError('the file lists no images, or no boxes of theirs')
    return {'images': content['images'], 'annotations': [{'id': i + 1, **a} for i, a in enumerate(annotations)]}


def _random_boxes(image: dict, count: int, seed: int) -> list[list[float]]:
    """Boxes xywh inside an image, to whole hundredths of a pixel."""
    if not count:
        return []
    number = image['id'] if isinstance(image['id'], int) else crc32(str(image['id']).encode())
    generator = np.random.default_rng((seed, number))
    size = np.array([image['width'], image['height']])
    sides = generator.uniform(*RANDOM_SIDES, (count, 2)) * size
    corners = generator.uniform(0, 1, (count, 2)) * (size - sides)
    return np.concatenate([corners, sides], axis=1).round(2).tolist()
