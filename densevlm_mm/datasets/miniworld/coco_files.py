"""Scenes as COCO's files: image, panoptic PNG and the entries of the annotation lists.

Format: https://cocodataset.org/#format-data
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .classes import CATEGORIES
from .scene import Scene

Entry = dict[str, Any]


@dataclass(frozen=True)
class Annotations:
    """What the annotation files say about one image."""

    image: Entry
    instances: list[Entry]
    panoptic: Entry
    captions: list[Entry]


def panoptic_folder(root: Path, split: str) -> Path:
    """Where the panoptic maps of a split lie."""
    return root / 'annotations' / f'panoptic_{split}'


def annotation_files(root: Path, split: str) -> dict[str, Path]:
    """The annotation files of a split: ``instances``, ``panoptic`` and ``captions``."""
    folder = root / 'annotations'
    return {kind: folder / f'{kind}_{split}.json' for kind in ('instances', 'panoptic', 'captions')}


def write_scene(root: Path, split: str, image_id: int, scene: Scene, captions: Sequence[str]) -> Annotations:
    """Write the image and the panoptic map of a scene into existing folders and return its annotations."""
    stem = f'{image_id:012d}'
    # Subsampled colour would smear a thing's hue over its neighbours: eight pixels are a whole patch here.
    Image.fromarray(scene.image).save(root / split / f'{stem}.jpg', quality=95, subsampling=0)
    Image.fromarray(encode_ids(scene.segment_map)).save(panoptic_folder(root, split) / f'{stem}.png')
    return annotate(image_id, stem, scene, captions)


def annotate(image_id: int, stem: str, scene: Scene, captions: Sequence[str]) -> Annotations:
    """Describe a scene whose files are named ``stem``.

    Annotation ids are ten times the image's id plus a counter, hence unique over all splits.
    """
    height, width = scene.segment_map.shape
    instances, segments = [], []
    for segment in scene.segments:
        mask = scene.segment_map == segment.id
        region = {
            'category_id': segment.category.id,
            'bbox': bounding_box(mask),
            'area': int(np.count_nonzero(mask)),
            'iscrowd': 0,
        }
        segments.append({'id': segment.id, **region})
        if segment.category.isthing:
            ids = {'id': 10 * image_id + len(instances), 'image_id': image_id}
            instances.append({**ids, **region, 'segmentation': encode_mask(mask)})
    return Annotations(
        image={'id': image_id, 'file_name': f'{stem}.jpg', 'height': height, 'width': width},
        instances=instances,
        panoptic={'image_id': image_id, 'file_name': f'{stem}.png', 'segments_info': segments},
        captions=[
            {'id': 10 * image_id + number, 'image_id': image_id, 'caption': text}
            for number, text in enumerate(captions)
        ],
    )


def write_annotation_files(root: Path, split: str, annotations: Sequence[Annotations], info: Entry) -> None:
    """Write the three annotation files of a split into an existing folder."""
    header = {'info': info, 'licenses': [], 'images': [annotation.image for annotation in annotations]}
    things = [category.to_coco() for category in CATEGORIES if category.isthing]
    for entry in things:
        del entry['isthing']
    contents = {
        'instances': {'annotations': _chain(a.instances for a in annotations), 'categories': things},
        'panoptic': {
            'annotations': [a.panoptic for a in annotations],
            'categories': [category.to_coco() for category in CATEGORIES],
        },
        'captions': {'annotations': _chain(a.captions for a in annotations)},
    }
    for kind, path in annotation_files(root, split).items():
        path.write_text(json.dumps({**header, **contents[kind]}, separators=(',', ':')), encoding='utf-8')


def encode_ids(segment_map: np.ndarray) -> np.ndarray:
    """Segment ids (H, W) as colours (H, W, 3) uint8: id = R + 256 G + 65536 B."""
    return np.stack([segment_map >> shift & 255 for shift in (0, 8, 16)], axis=-1).astype(np.uint8)


def encode_mask(mask: np.ndarray) -> Entry:
    """A mask (H, W) as an uncompressed RLE: lengths of runs down the columns, the first of background."""
    flat = mask.ravel(order='F')
    changes = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    return {'size': list(mask.shape), 'counts': [0, *runs] if flat[0] else runs}


def bounding_box(mask: np.ndarray) -> list[int]:
    """The box [x, y, width, height] in pixels around a mask (H, W) that is not empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    return [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1]


def _chain(groups: Iterable[list[Entry]]) -> list[Entry]:
    return [entry for group in groups for entry in group]
