from __future__ import annotations

import json

import pytest
from PIL import Image

from densevlm_mm.datasets import ImageDataset
from densevlm_mm.registry import DATASETS


@pytest.fixture
def folder(tmp_path):
    for name in ('images/z.jpg', 'images/sub/b.PNG', 'images/sub/a.webp'):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (20, 20)).save(path)
    (tmp_path / 'images' / 'notes.txt').write_text('no image')
    entries = [{'id': 5, 'file_name': 'z.jpg'}, {'id': 2, 'file_name': 'sub/b.PNG'}]
    (tmp_path / 'images.json').write_text(json.dumps({'images': entries, 'annotations': []}))
    return tmp_path


def build(folder, **options) -> ImageDataset:
    options = {'data_root': str(folder), 'data_prefix': {'img_path': 'images'}} | options
    return DATASETS.build({'type': 'densevlm_mm.ImageDataset', **options})


def test_annotation_file_gives_its_images_in_order(folder):
    dataset = build(folder, ann_file='images.json')
    assert [dataset[i]['img_id'] for i in range(len(dataset))] == [5, 2]
    assert dataset[1]['img_path'] == str(folder / 'images' / 'sub' / 'b.PNG')


def test_folder_gives_its_images_sorted(folder):
    dataset = build(folder)
    assert [dataset[i]['img_id'] for i in range(len(dataset))] == ['sub/a.webp', 'sub/b.PNG', 'z.jpg']
    Image.open(dataset[0]['img_path']).load()


def test_item_by_index_or_by_epoch_and_index(folder):
    dataset = build(folder, ann_file='images.json')
    assert 'epoch' not in dataset[1]
    assert dataset[3, 1] == dataset[1] | {'epoch': 3}
    assert dataset[1]['sample_idx'] == 1


def test_subset(folder):
    assert len(build(folder, indices=2)) == 2


@pytest.mark.parametrize(
    'content, message',
    [
        ({'annotations': []}, 'lists no "images"'),
        ({'images': []}, 'lists no "images"'),
        ({'images': [{'id': 1}]}, r"images\[0\] has no \['file_name'\]"),
        ([1, 2], 'JSON object'),
    ],
)
def test_annotation_file_without_images_is_an_error(folder, content, message):
    (folder / 'images.json').write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as error:
        build(folder, ann_file='images.json')
    assert str(folder / 'images.json') in str(error.value)


def test_broken_annotation_file_is_an_error(folder):
    (folder / 'images.json').write_text('{"images": [')
    with pytest.raises(ValueError, match='images.json: not a JSON file'):
        build(folder, ann_file='images.json')


def test_missing_files_are_named(folder):
    with pytest.raises(FileNotFoundError, match='nowhere.json: no such annotation file'):
        build(folder, ann_file='nowhere.json')
    with pytest.raises(FileNotFoundError, match='nowhere: no such folder'):
        build(folder, data_prefix={'img_path': 'nowhere'})
    with pytest.raises(FileNotFoundError, match='nowhere: no such folder'):
        build(folder, ann_file='images.json', data_prefix={'img_path': 'nowhere'})


def test_folder_without_images_is_an_error(folder):
    (folder / 'empty').mkdir()
    with pytest.raises(FileNotFoundError, match='empty: no image in this folder'):
        build(folder, data_prefix={'img_path': 'empty'})


def test_typos_are_errors(folder):
    with pytest.raises(TypeError, match='anotation_file'):
        build(folder, anotation_file='images.json')
    with pytest.raises(ValueError, match=r"unknown keys \['img'\]"):
        build(folder, data_prefix={'img': 'images'})
