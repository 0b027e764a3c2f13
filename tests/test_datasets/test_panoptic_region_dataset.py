from __future__ import annotations

import pytest

from densevlm_mm.datasets import PanopticRegionDataset
from densevlm_mm.registry import DATASETS


def build(folder, **options) -> PanopticRegionDataset:
    options = {
        'data_root': str(folder),
        'ann_file': 'panoptic.json',
        'data_prefix': {'img_path': 'images', 'seg_map_path': 'maps'},
    } | options
    return DATASETS.build({'type': 'densevlm_mm.PanopticRegionDataset', **options})


def test_labels_are_ranks_of_category_ids(panoptic_folder):
    dataset = build(panoptic_folder)
    assert dataset.metainfo['classes'] == ('cat', 'dog', 'sky-other-merged')
    assert dataset.metainfo['is_thing'] == (True, True, False)
    segments = dataset[0]['segments_info']
    assert [(s['id'], s['label'], s['is_thing']) for s in segments] == [
        (259, 0, True),
        (5, 2, False),
        (6, 0, True),
    ]


def test_items(panoptic_folder):
    dataset = build(panoptic_folder)
    assert [dataset[i]['img_id'] for i in range(len(dataset))] == [7, 3]
    assert dataset[0]['img_path'] == str(panoptic_folder / 'images' / 'a.jpg')
    assert dataset[0]['seg_map_path'] == str(panoptic_folder / 'maps' / 'a.png')
    assert dataset[1]['segments_info'] == []
    assert dataset[4, 0]['epoch'] == 4


def test_image_without_annotation_stays(panoptic_folder, rewrite):
    rewrite(lambda content: content['annotations'].pop())
    assert build(panoptic_folder)[1]['segments_info'] == []


def test_display_names_may_be_given(panoptic_folder):
    names = ['Katze', 'Hund', 'Himmel']
    assert build(panoptic_folder, metainfo={'classes': names}).metainfo['classes'] == names
    with pytest.raises(ValueError, match='has 3 categories, but metainfo names 1'):
        build(panoptic_folder, metainfo={'classes': ['Katze']})


def segments(content: dict) -> list[dict]:
    return content['annotations'][0]['segments_info']


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda content: content.pop('images'), 'lists no "images"'),
        (lambda content: content.pop('annotations'), 'holds no segment'),
        (lambda content: segments(content).clear(), 'holds no segment'),
        (lambda content: content['annotations'][0].pop('segments_info'), 'instance file'),
        (lambda content: content['annotations'][0].update(image_id=99), r'does not list, ids \[99\]'),
        (lambda content: content.pop('categories'), '"categories" is empty'),
        (lambda content: content['categories'][0].pop('isthing'), 'instance file'),
        (lambda content: content['categories'][0].update(id=4), 'repeats an id'),
        (lambda content: segments(content)[0].update(category_id=77), 'a.png .id 259. has category 77'),
        (lambda content: segments(content)[0].pop('bbox'), 'a.png .id 259. is a thing'),
        (lambda content: segments(content)[1].pop('id'), r"a.png has no \['id'\]"),
    ],
)
def test_broken_annotation_file_is_an_error_that_names_it(panoptic_folder, rewrite, change, message):
    rewrite(change)
    with pytest.raises(ValueError, match=message) as error:
        build(panoptic_folder)
    assert str(panoptic_folder / 'panoptic.json') in str(error.value)


def test_missing_folder_is_named(panoptic_folder):
    with pytest.raises(FileNotFoundError, match='nowhere: no such folder'):
        build(panoptic_folder, data_prefix={'img_path': 'images', 'seg_map_path': 'nowhere'})


def test_typo_in_prefix_is_an_error(panoptic_folder):
    with pytest.raises(ValueError, match=r"unknown keys \['seg'\]"):
        build(panoptic_folder, data_prefix={'img_path': 'images', 'seg': 'maps'})
