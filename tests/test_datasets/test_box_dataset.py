from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from densevlm_mm.datasets import BoxDataset, read_category_names
from densevlm_mm.registry import DATASETS


def content() -> dict:
    return {
        'images': [{'id': 7, 'file_name': 'a.jpg'}, {'id': 3, 'file_name': 'b.jpg'}, {'id': 5, 'file_name': 'c.jpg'}],
        'annotations': [
            {'image_id': 5, 'bbox': [1, 2, 10, 20], 'category_id': 9},
            {'image_id': 7, 'bbox': [0.5, 0, 3, 4], 'category_id': 4},
            {'image_id': 5, 'bbox': [0, 0, 5, 5], 'category_id': 4},
        ],
        'categories': [{'id': 9, 'name': 'zebra'}, {'id': 4, 'name': 'apple'}],
    }


@pytest.fixture
def build(tmp_path):
    """Builds the data set after a change of its file."""
    (tmp_path / 'images').mkdir()
    for name in 'abc':
        Image.new('RGB', (20, 30)).save(tmp_path / 'images' / f'{name}.jpg')

    def make(change=lambda file: None) -> BoxDataset:
        file = content()
        change(file)
        (tmp_path / 'boxes.json').write_text(json.dumps(file))
        return DATASETS.build(
            {
                'type': 'densevlm_mm.BoxDataset',
                'data_root': str(tmp_path),
                'ann_file': 'boxes.json',
                'data_prefix': {'img_path': 'images'},
            }
        )

    return make


def test_images_with_boxes_in_the_order_of_the_file(build):
    dataset = build()
    assert [dataset[i]['img_id'] for i in range(len(dataset))] == [7, 5]
    assert dataset[0]['img_path'].endswith('images/a.jpg')
    np.testing.assert_array_equal(dataset[0]['ann_boxes'], np.array([[0.5, 0, 3.5, 4]], np.float32))
    np.testing.assert_array_equal(dataset[1]['ann_boxes'], [[1, 2, 11, 22], [0, 0, 5, 5]])
    assert dataset[1]['ann_boxes'].dtype == np.float32


def test_labels_are_ranks_of_category_ids(build, tmp_path):
    dataset = build()
    assert dataset.metainfo['classes'] == ('apple', 'zebra') == read_category_names(str(tmp_path / 'boxes.json'))
    assert dataset[1]['ann_labels'].tolist() == [1, 0] and dataset[1]['ann_labels'].dtype == np.int64


def test_categories_are_optional(build):
    def change(file: dict) -> None:
        del file['categories']
        for annotation in file['annotations']:
            del annotation['category_id']

    dataset = build(change)
    assert len(dataset) == 2 and 'ann_labels' not in dataset[0] and 'classes' not in dataset.metainfo


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda f: f.pop('annotations'), 'boxes.json: has no "annotations"'),
        (lambda f: f.pop('images'), 'boxes.json: lists no "images"'),
        (lambda f: f['annotations'][1].pop('bbox'), r"boxes.json: annotations\[1\] has no \['bbox'\]"),
        (lambda f: f['annotations'][1].pop('category_id'), r"annotations\[1\] has no \['category_id'\]"),
        (lambda f: f['annotations'][1].update(bbox=[1, 2, 3]), r'annotations\[1\] needs a "bbox" of four numbers'),
        (lambda f: f['annotations'][1].update(image_id=8), r'annotations\[1\] is of image 8, which "images" does not'),
        (lambda f: f['annotations'][1].update(category_id=8), r'annotations\[1\] has category 8, which "categories"'),
        (lambda f: f['categories'][1].update(id=9), 'boxes.json: "categories" repeats an id'),
        (lambda f: f['categories'][1].pop('name'), 'boxes.json: a category has no "id" or "name"'),
    ],
)
def test_files_that_cannot_be_used(build, change, message):
    with pytest.raises(ValueError, match=message):
        build(change)


def test_missing_file_is_named(build, tmp_path):
    build()
    with pytest.raises(FileNotFoundError, match='gone.json: no such annotation file'):
        BoxDataset(data_root=str(tmp_path), ann_file='gone.json', data_prefix={'img_path': 'images'})
