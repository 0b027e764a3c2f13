"""Label maps on disk: how they are written, and how panoptic annotations become them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from densevlm_mm.vlm import Vocabulary
from densevlm_mm.vlm.checkpoints import save_atomically

from .image_file import BadImageError, read_image
from .transforms.panoptic_regions import read_segment_map

Progress = Callable[[int, int], None]
Entry = dict[str, Any]


def ignore_index(num_classes: int) -> int:
    """The value for pixels that do not count, in a file that has the fewest bits for so many classes: 255 or 65535."""
    return 255 if num_classes <= 255 else 65535


def save_label_map(path: Path, labels: np.ndarray, *, num_classes: int) -> bool:
    """Write a label map as a PNG of 8 bits, or of 16 for more than 255 classes; whole, or not at all.

    A file that holds these labels is left alone, so that an interrupted conversion soon is where it was.

    Args:
        path: File to be written.
        labels: ``(H, W)``, 0..K-1 and what `ignore_index` says.
        num_classes: K.

    Returns:
        Whether anything was written.

    Raises:
        ValueError: If there are other values among the labels.
    """
    void = ignore_index(num_classes)
    outside = labels[((labels < 0) | (labels >= num_classes)) & (labels != void)]
    if outside.size:
        raise ValueError(f'{path}: label {outside[0]} is none of {num_classes} classes')
    stored = labels.astype(np.uint8 if void == 255 else np.uint16)
    if path.is_file() and _holds(path, stored):
        return False
    save_atomically(path, lambda file: Image.fromarray(stored).save(file, 'png'))
    return True


def convert_panoptic(
    annotation_file: Path,
    maps: Path,
    out: Path,
    *,
    vocabulary: Vocabulary | None = None,
    progress: Progress | None = None,
) -> int:
    """Write a label map for every image of a COCO-panoptic annotation file, under the name of its panoptic map.

    Pixels of no segment, and of classes that the vocabulary does not name, get `ignore_index`. Instances of a class
    become one, crowds among them.

    Args:
        annotation_file: JSON with ``annotations`` and ``categories``.
        maps: Folder of the panoptic maps.
        out: Folder for the label maps, to be created.
        vocabulary: Which classes there are, in the order of their labels. None: the categories of the file, in its
            order; the file itself then serves as the vocabulary's.
        progress: Called with the number of images done and of all.

    Returns:
        The number of images.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: The file is no such file, or lacks a class of the vocabulary; or a map cannot be decoded or does not
            fit its entry.
    """
    try:
        content = json.loads(annotation_file.read_text(encoding='utf-8'))
        categories, annotations = content['categories'], content['annotations']
        vocabulary = vocabulary or Vocabulary.from_categories(categories)
        labels = _labels_by_category(categories, vocabulary)
        for number, annotation in enumerate(annotations, start=1):
            name = annotation['file_name']
            segments = {s['id']: labels.get(s['category_id']) for s in annotation['segments_info']}
            converted = _label_map(maps / name, segments, void=ignore_index(len(vocabulary)))
            save_label_map((out / name).with_suffix('.png'), converted, num_classes=len(vocabulary))
            if progress:
                progress(number, len(annotations))
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f'{annotation_file}: is no COCO-panoptic annotation file ({error!r})') from error
    return len(annotations)


def _labels_by_category(categories: Sequence[Entry], vocabulary: Vocabulary) -> dict[int, int]:
    by_name = {category['name']: category['id'] for category in categories}
    missing = [name for name in vocabulary.names if name not in by_name]
    if missing:
        raise ValueError(f'the annotation file lists no categories {missing}; give a vocabulary of its own names')
    return {by_name[name]: label for label, name in enumerate(vocabulary.names)}


def _label_map(path: Path, segments: dict[int, int | None], *, void: int) -> np.ndarray:
    """Labels ``(H, W)`` of a panoptic map, from those of its segments; None means no class of interest."""
    segment_map = read_segment_map(str(path))
    ids, inverse = np.unique(segment_map, return_inverse=True)
    unknown = sorted({*ids.tolist()} - {0, *segments})
    if unknown:
        raise ValueError(
            f'{path}: holds segment {unknown[0]}, which the annotation file does not list; both must be of the same '
            'release'
        )
    labels = [segments.get(segment_id) for segment_id in ids.tolist()]
    return np.array([void if label is None else label for label in labels])[inverse].reshape(segment_map.shape)


def _holds(path: Path, stored: np.ndarray) -> bool:
    try:
        found = np.asarray(read_image(str(path)))
    except BadImageError:
        return False
    return found.dtype == stored.dtype and np.array_equal(found, stored)
