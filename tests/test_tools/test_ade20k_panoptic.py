"""ADE20K's panoptic converter: on a tiny release, read back by the data set of the evaluation."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densevlm_mm.datasets import PanopticRegionDataset
from densevlm_mm.visualization import panoptic_labels
from densevlm_mm.vlm import build_vocabulary

TOOL = Path(__file__).parents[2] / 'tools' / 'dataset_converters' / 'ade20k_panoptic.py'
# The published list (categoryMapping.txt): number of each of the 100 instance classes among the 150, from 1.
PUBLISHED = [
    8, 9, 11, 13, 15, 16, 19, 20, 21, 23, 24, 25, 28, 31, 32, 33, 34, 36, 37, 38, 39, 40, 42, 43, 44, 45, 46, 48, 50,
    51, 54, 56, 57, 58, 59, 63, 65, 66, 67, 68, 70, 71, 72, 73, 74, 75, 76, 77, 79, 81, 82, 83, 84, 86, 87, 88, 89, 90,
    91, 93, 94, 96, 98, 99, 103, 104, 105, 108, 109, 111, 112, 113, 116, 117, 119, 120, 121, 122, 124, 125, 126, 127,
    128, 130, 131, 133, 134, 135, 136, 137, 138, 139, 140, 143, 144, 145, 147, 148, 149, 150,
]  # fmt: skip
WALL, SKY, BED, PERSON = 0, 2, 7, 12  # labels
BED_CLASS, PERSON_CLASS = 1, 4  # of the instance challenge


@pytest.fixture(scope='module')
def tool() -> dict:
    return runpy.run_path(str(TOOL))


@pytest.fixture
def convert(tool, release) -> Callable[..., int]:
    return lambda *arguments: tool['main']([str(release), *arguments])


def save(folder: Path, name: str, array: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.astype(np.uint8)).save(folder / name)


def make_maps() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Classes, instances, and the labels that follow (-1: void).

    Sky above wall, two beds in the wall of which one reaches into the sky, a person of the class map without an
    instance, a person instance on it only in part, a tower (stuff) wholly behind a bed, and void at the left.
    """
    classes, instances = np.zeros((20, 30), int), np.zeros((20, 30, 3), int)
    labels = np.full((20, 30), -1)
    classes[:8, 3:], classes[8:, 3:] = SKY + 1, WALL + 1
    labels[:8, 3:], labels[8:, 3:] = SKY, WALL
    classes[12:18, 5:10] = BED + 1
    instances[12:18, 5:10] = (BED_CLASS, 9, 77)  # the blue channel means nothing
    instances[6:12, 20:26] = (BED_CLASS, 2, 0)
    classes[8:10, 20:22] = 85  # tower
    labels[12:18, 5:10] = labels[6:12, 20:26] = BED
    classes[10:14, 12:18] = PERSON + 1
    labels[10:14, 12:18] = -1
    instances[10:12, 12:18] = (PERSON_CLASS, 3, 0)
    labels[10:12, 12:18] = PERSON
    return classes, instances, labels


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """Two images: one as in `make_maps`, one that is void."""
    root = tmp_path / 'ADEChallengeData2016'
    classes, instances, _ = make_maps()
    for name, content in (('ADE_val_1', (classes, instances)), ('ADE_val_2', (0 * classes, 0 * instances))):
        save(root / 'images' / 'validation', f'{name}.jpg', np.full((20, 30, 3), 128))
        save(root / 'annotations' / 'validation', f'{name}.png', content[0])
        save(root / 'annotations_instance' / 'validation', f'{name}.png', content[1])
    return root


def read(root: Path) -> PanopticRegionDataset:
    prefix = {'img_path': 'images/validation', 'seg_map_path': 'ade20k_panoptic_val'}
    return PanopticRegionDataset(data_root=str(root), ann_file='ade20k_panoptic_val.json', data_prefix=prefix)


def test_things_are_the_published_ones(tool):
    assert [label + 1 for label in tool['THINGS']] == PUBLISHED


def test_label_maps_are_those_of_the_release(convert, release):
    assert convert('--split', 'validation') == 0
    dataset = read(release)
    vocabulary = build_vocabulary('ade20k_panoptic')
    assert dataset.metainfo['classes'] == vocabulary.names
    assert dataset.metainfo['is_thing'] == vocabulary.is_thing
    np.testing.assert_array_equal(panoptic_labels(dataset.get_data_info(0)), make_maps()[2])
    assert dataset.get_data_info(1)['segments_info'] == []
    assert [entry['label'] for entry in dataset.get_data_info(0)['segments_info']] == [WALL, SKY, BED, PERSON, BED]


def test_segments_have_their_instances_areas_and_boxes(convert, release):
    convert()
    content = json.loads((release / 'ade20k_panoptic_val.json').read_text())
    assert content['images'][0] == {'id': 'ADE_val_1', 'file_name': 'ADE_val_1.jpg', 'width': 30, 'height': 20}
    annotation = content['annotations'][0]
    assert (annotation['image_id'], annotation['file_name']) == ('ADE_val_1', 'ADE_val_1.png')
    segments = annotation['segments_info']
    assert [s['category_id'] for s in segments] == [WALL, SKY, BED, PERSON, BED]
    assert segments[2:] == [
        {'id': segments[2]['id'], 'category_id': BED, 'area': 36, 'bbox': [20, 6, 6, 6], 'iscrowd': 0},
        {'id': segments[3]['id'], 'category_id': PERSON, 'area': 12, 'bbox': [12, 10, 6, 2], 'iscrowd': 0},
        {'id': segments[4]['id'], 'category_id': BED, 'area': 30, 'bbox': [5, 12, 5, 6], 'iscrowd': 0},
    ]
    assert len({s['id'] for s in segments}) == 5
    colors = np.asarray(Image.open(release / 'ade20k_panoptic_val' / 'ADE_val_1.png')).astype(int)
    ids = colors @ [1, 256, 256**2]
    for segment in segments:
        assert (ids == segment['id']).sum() == segment['area']


def test_conversion_goes_on_where_it_was(convert, release, monkeypatch):
    convert()
    maps = release / 'ade20k_panoptic_val'
    before = {path.name: path.stat().st_mtime_ns for path in maps.iterdir()}
    (release / 'ade20k_panoptic_val.json').unlink()
    (maps / 'ADE_val_1.png').write_bytes(b'not of this converter')
    assert convert() == 0
    assert (release / 'ade20k_panoptic_val.json').exists()
    assert (maps / 'ADE_val_2.png').stat().st_mtime_ns == before['ADE_val_2.png']
    np.testing.assert_array_equal(panoptic_labels(read(release).get_data_info(0)), make_maps()[2])


def test_failure_leaves_no_annotation_file_and_no_scraps(convert, release, capsys):
    (release / 'annotations' / 'validation' / 'ADE_val_2.png').write_bytes(b'damaged')
    assert convert() == 2
    assert 'ADE_val_2.png: cannot be decoded' in capsys.readouterr().err
    assert not (release / 'ade20k_panoptic_val.json').exists()
    assert [path.name for path in (release / 'ade20k_panoptic_val').iterdir()] == ['ADE_val_1.png']


def test_training_split_has_its_own_files(convert, release):
    for folder in ('images', 'annotations', 'annotations_instance'):
        (release / folder / 'validation').rename(release / folder / 'training')
    assert convert('--split', 'training') == 0
    assert {path.name for path in release.glob('ade20k*')} == {'ade20k_panoptic_train', 'ade20k_panoptic_train.json'}


def test_missing_parts_are_named(convert, release, capsys):
    (release / 'annotations_instance' / 'validation' / 'ADE_val_2.png').unlink()
    assert convert() == 2
    assert 'no map of 1 of 2 images, such as ADE_val_2.png' in capsys.readouterr().err
    (release / 'annotations_instance').rename(release / 'elsewhere')
    assert convert() == 2
    error = capsys.readouterr().err
    assert 'annotations_instance/validation: no .png file' in error and 'unpack' in error
    assert not list(release.glob('ade20k*'))


@pytest.mark.parametrize(
    ('where', 'value', 'message'),
    [
        ('annotations', 151, 'the map of classes holds 151, but there are 150'),
        ('annotations_instance', (101, 5, 0), 'holds instances of class 101, but thing classes are 1..100'),
        ('annotations_instance', (0, 5, 0), 'holds instances of class 0'),
        ('annotations_instance', (PERSON_CLASS, 9, 0), 'instance 9 is of several classes'),
    ],
)
def test_values_that_do_not_exist_are_errors(convert, release, capsys, where, value, message):
    path = release / where / 'validation' / 'ADE_val_1.png'
    array = np.array(Image.open(path))
    array[0, 0] = value
    Image.fromarray(array).save(path)
    assert convert() == 2
    error = capsys.readouterr().err
    assert 'ADE_val_1.png: ' in error and message in error


@pytest.mark.parametrize(
    ('image', 'message'),
    [
        (Image.new('RGB', (30, 21)), 'is 30x21 px, but its image is 30x20 px'),
        (Image.new('L', (30, 20)), 'an RGB image is expected'),
        (Image.new('I;16', (30, 20)), 'a map of 8 bits is needed'),
    ],
)
def test_maps_that_do_not_fit_are_errors(convert, release, capsys, image, message):
    image.save(release / 'annotations_instance' / 'validation' / 'ADE_val_1.png')
    assert convert() == 2
    error = capsys.readouterr().err
    assert 'annotations_instance/validation/ADE_val_1.png: ' in error and message in error
