from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope='session')
def parity(data_dir: Path) -> dict[str, np.ndarray]:
    with np.load(data_dir / 'parity' / 'data_eval.npz') as file:
        return dict(file)


@pytest.fixture
def panoptic_folder(tmp_path: Path) -> Path:
    """Two images in COCO-panoptic format; the second has no segment.

    Image 7, 40 x 30 px: a thing (id 256 + 3, category 4, box 2,4,10,12), stuff (id 5, category 9) in its
    right half, a thing of 5 x 5 px (id 6, category 4) that the size filter drops. The file lists the
    categories in the order 9, 4, 6.
    """
    (tmp_path / 'images').mkdir()
    (tmp_path / 'maps').mkdir()
    generator = np.random.default_rng(0)
    for name in ('a', 'b'):
        Image.fromarray(generator.integers(0, 256, (30, 40, 3), np.uint8)).save(tmp_path / 'images' / f'{name}.jpg')
    segment_map = np.zeros((30, 40, 3), np.uint8)
    segment_map[4:16, 2:12] = (3, 1, 0)
    segment_map[:, 20:] = (5, 0, 0)
    segment_map[20:25, 2:7] = (6, 0, 0)
    Image.fromarray(segment_map).save(tmp_path / 'maps' / 'a.png')
    write_annotations(tmp_path, annotations())
    return tmp_path


def annotations() -> dict:
    return {
        'images': [
            {'id': 7, 'file_name': 'a.jpg', 'width': 40, 'height': 30},
            {'id': 3, 'file_name': 'b.jpg', 'width': 40, 'height': 30},
        ],
        'categories': [
            {'id': 9, 'name': 'sky-other-merged', 'isthing': 0},
            {'id': 4, 'name': 'cat', 'isthing': 1},
            {'id': 6, 'name': 'dog', 'isthing': 1},
        ],
        'annotations': [
            {
                'image_id': 7,
                'file_name': 'a.png',
                'segments_info': [
                    {'id': 259, 'category_id': 4, 'bbox': [2, 4, 10, 12], 'iscrowd': 1},
                    {'id': 5, 'category_id': 9, 'bbox': [0, 0, 1, 1]},
                    {'id': 6, 'category_id': 4, 'bbox': [2, 20, 5, 5]},
                ],
            },
            {'image_id': 3, 'file_name': 'b.png', 'segments_info': []},
        ],
    }


def write_annotations(folder: Path, content: object) -> None:
    (folder / 'panoptic.json').write_text(json.dumps(content))


@pytest.fixture
def rewrite(panoptic_folder: Path):
    """Change the annotation file of ``panoptic_folder``: takes a function that edits the dict in place."""

    def edit(change) -> None:
        content = annotations()
        change(content)
        write_annotations(panoptic_folder, content)

    return edit
