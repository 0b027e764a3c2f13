"""Bad images: replaced in training, the same way for everyone, and an error everywhere else."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densevlm_mm.datasets import BadImageError, ImageDataset
from densevlm_mm.registry import DATASETS

PIPELINE = [
    {'type': 'densevlm_mm.LoadImage'},
    {'type': 'densevlm_mm.ResizeLongestPad', 'size': 16},
    {'type': 'densevlm_mm.SampleGridRegions'},
    {'type': 'densevlm_mm.PackRegions'},
]
BAD = {'02.png': 'truncated', '05.png': 'empty', '07.png': 'unreadable', '09.png': 'too small'}


@pytest.fixture
def folder(tmp_path) -> Path:
    """Twenty images: four of them bad, one grey."""
    generator = np.random.default_rng(0)
    for number in range(20):
        size = (4, 30) if f'{number:02}.png' == '09.png' else (20, 30)
        pixels = generator.integers(0, 256, size if number == 3 else (*size, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f'{number:02}.png')
    (tmp_path / '02.png').write_bytes((tmp_path / '02.png').read_bytes()[:300])
    (tmp_path / '05.png').write_bytes(b'')
    (tmp_path / '07.png').write_bytes(b'<html>404</html>')
    return tmp_path


def build(folder, **options) -> ImageDataset:
    options = {'type': 'densevlm_mm.ImageDataset', 'data_root': str(folder), 'pipeline': PIPELINE, **options}
    return DATASETS.build(options)


def test_bad_images_are_replaced_in_training(folder):
    dataset = build(folder)
    samples = [dataset[epoch, index]['data_samples'] for epoch in range(3) for index in range(20)]
    assert len(samples) == 60 and not any(sample.img_id in BAD for sample in samples)
    found = Counter(pair for sample in samples for pair in sample.get('replaced', ()))
    assert set(found) == {(kind, str(folder / name)) for name, kind in BAD.items()}
    # once per epoch because they were asked for, more often where they were to replace another one
    assert min(found.values()) >= 3
    assert all('replaced' not in sample for sample in samples[10:20])


def test_conversions_are_noted(folder):
    dataset = build(folder)
    samples = [dataset[0, index]['data_samples'] for index in range(20)]
    assert {sample.img_id for sample in samples if 'converted' in sample} == {'03.png'}
    assert samples[3].converted == ('greyscale',)


def test_replacement_follows_from_epoch_and_index(folder):
    dataset = build(folder)
    chosen = [dataset[epoch, 5]['data_samples'].img_id for epoch in range(10)]
    assert chosen == [dataset[epoch, 5]['data_samples'].img_id for epoch in range(10)]
    assert len(set(chosen)) > 3
    np.random.seed(1)
    assert build(folder)[4, 5]['data_samples'].img_id == chosen[4]


def test_replacement_is_a_whole_item(folder):
    """Its data, epoch and grid are its own, those of the same item asked for directly."""
    dataset = build(folder)
    item = dataset[1, 5]
    index = int(Path(item['data_samples'].img_path).stem)
    direct = dataset[1, index]
    assert (item['inputs'] == direct['inputs']).all()
    assert (item['data_samples'].gt_regions.boxes == direct['data_samples'].gt_regions.boxes).all()
    assert 'replaced' in item['data_samples'] and 'replaced' not in direct['data_samples']


@pytest.mark.parametrize('name', BAD)
@pytest.mark.parametrize('options', [{'test_mode': True}, {'bad_images': 'error'}])
def test_bad_images_are_errors_where_asked(folder, options, name):
    with pytest.raises(BadImageError, match=f'{name}: .*drop it from the data set') as error:
        build(folder, **options)[0, int(name[:2])]
    assert error.value.kind == BAD[name]


def test_bad_images_are_errors_without_an_epoch(folder):
    with pytest.raises(BadImageError, match=r'05.png: the file is empty'):
        build(folder)[5]


def test_missing_file_is_an_error_in_training(folder):
    dataset = build(folder)
    (folder / '04.png').unlink()
    with pytest.raises(FileNotFoundError, match='04.png'):
        dataset[0, 4]


def test_data_set_of_bad_images_is_an_error(folder):
    for path in folder.iterdir():
        path.write_bytes(b'')
    with pytest.raises(RuntimeError, match=r'9 bad images in a row, .*04.png \(empty\), .*; check the data set'):
        build(folder)[0, 4]


def test_unknown_way_to_treat_them(folder):
    with pytest.raises(ValueError, match="bad_images must be 'replace' or 'error', got 'skip'"):
        build(folder, bad_images='skip')


def test_pipelines_that_pack_nothing(folder):
    dataset = build(folder, pipeline=PIPELINE[:1])
    assert dataset[0, 5]['replaced'] == (('empty', str(folder / '05.png')),)
    assert dataset[0, 3]['converted'] == ('greyscale',)
