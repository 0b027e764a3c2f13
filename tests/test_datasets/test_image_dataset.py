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


def test_text_file_gives_its_images_in_order(folder):
    (folder / 'list.txt').write_text('z.jpg\n\n  sub/a.webp \r\n')
    dataset = build(folder, ann_file='list.txt')
    assert [dataset[i]['img_id'] for i in range(len(dataset))] == ['z.jpg', 'sub/a.webp']
    assert dataset[1]['img_path'] == str(folder / 'images' / 'sub' / 'a.webp')


def test_text_file_that_is_empty_or_missing(folder):
    (folder / 'list.txt').write_text('\n \n')
    with pytest.raises(ValueError, match=r'list.txt: is empty; a list with a path in each line'):
        build(folder, ann_file='list.txt')
    with pytest.raises(FileNotFoundError, match=r'gone.txt: no such annotation file'):
        build(folder, ann_file='gone.txt')


@pytest.fixture
def patches(tmp_path):
    """Objects365's annotation file names folders that its archives do not have; some releases name none."""
    names = [f'objects365_v{1 + i % 2}_{i:08}.jpg' for i in range(200)]
    for i, name in enumerate(names):
        path = tmp_path / 'train' / f'patch{i % 3}' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    entries = [{'id': i, 'file_name': f'images/v{1 + i % 2}/patch{i % 3}/{name}'} for i, name in enumerate(names)]
    (tmp_path / 'train.json').write_text(json.dumps({'images': entries}))
    (tmp_path / 'train.txt').write_text('\n'.join(names))
    return tmp_path


@pytest.mark.parametrize('ann_file', ['train.json', 'train.txt'])
def test_images_found_by_name(patches, ann_file):
    dataset = build(patches, ann_file=ann_file, data_prefix={'img_path': 'train'}, find_by_name=True)
    assert len(dataset) == 200
    assert dataset[4]['img_path'] == str(patches / 'train' / 'patch1' / 'objects365_v1_00000004.jpg')
    assert dataset[4]['img_id'] == (4 if ann_file == 'train.json' else 'objects365_v1_00000004.jpg')


def test_few_images_that_are_not_there_are_left_out_with_a_warning(patches, monkeypatch):
    said = []
    monkeypatch.setattr('densevlm_mm.datasets.image_dataset.print_log', lambda message, **_: said.append(message))
    for number in (3, 7):
        next(patches.rglob(f'*_{number:08}.jpg')).unlink()
    options = {'ann_file': 'train.json', 'data_prefix': {'img_path': 'train'}, 'find_by_name': True}
    dataset = build(patches, **options)
    assert [dataset[i]['img_id'] for i in range(5)] == [0, 1, 2, 4, 5] and len(dataset) == 198
    (message,) = said
    assert 'train.json: 2 of 200 images are not below' in message and 'objects365_v2_00000003.jpg' in message
    next(patches.rglob('*_00000008.jpg')).unlink()
    with pytest.raises(FileNotFoundError, match='3 of 200 images are not below .*unpack all archives'):
        build(patches, **options)


def test_names_that_are_ambiguous(patches):
    (patches / 'train' / 'objects365_v1_00000004.jpg').touch()
    with pytest.raises(ValueError, match='objects365_v1_00000004.jpg .*same name; find_by_name needs distinct ones'):
        build(patches, ann_file='train.json', data_prefix={'img_path': 'train'}, find_by_name=True)
