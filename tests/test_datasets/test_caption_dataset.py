from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from mmengine.structures import BaseDataElement
from PIL import Image

from densevlm_mm.datasets import CaptionDataset
from densevlm_mm.registry import DATASETS


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., None]:
    """Writes two images and a caption file; takes captions by image id."""
    (tmp_path / 'images').mkdir()
    for name in ('b', 'a'):
        Image.new('RGB', (20, 30)).save(tmp_path / 'images' / f'{name}.jpg')

    def annotate(captions: dict[int, list[str]]) -> None:
        images = [{'id': 7, 'file_name': 'b.jpg'}, {'id': 3, 'file_name': 'a.jpg'}]
        listed = [{'image_id': i, 'caption': text} for i, texts in captions.items() for text in texts]
        (tmp_path / 'captions.json').write_text(json.dumps({'images': images, 'annotations': listed}))

    return annotate


def build(folder: Path, **options) -> CaptionDataset:
    config = {'type': 'densevlm_mm.CaptionDataset', 'data_root': str(folder), 'ann_file': 'captions.json'}
    config |= {'data_prefix': {'img_path': 'images'}, 'test_mode': True, **options}
    return DATASETS.build(config)


def test_images_keep_the_order_of_the_file_and_their_first_captions(write, tmp_path):
    write({3: ['c', 'd'], 7: ['1', '2', '3', '4', '5', '6']})
    entries = [build(tmp_path)[index] for index in range(2)]
    assert [entry['img_id'] for entry in entries] == [7, 3]
    assert [entry['captions'] for entry in entries] == [['1', '2', '3', '4', '5'], ['c', 'd']]
    assert build(tmp_path, max_captions=1)[0]['captions'] == ['1']


def test_packed_item(write, tmp_path):
    write({3: ['c', 'd'], 7: ['e']})
    types = ('LoadImage', 'ResizeShortestCrop', 'PackCaptions')
    pipeline = [{'type': f'densevlm_mm.{name}', **({'size': 16} if 'Resize' in name else {})} for name in types]
    item = build(tmp_path, pipeline=pipeline)[1]
    assert item['inputs'].shape == (3, 16, 16)
    sample = item['data_samples']
    assert isinstance(sample, BaseDataElement) and sample.img_id == 3
    assert sample.to_dict()['captions'] == ['c', 'd']


def test_image_without_caption_is_named(write, tmp_path):
    write({3: ['c']})
    with pytest.raises(ValueError, match=r'captions.json: has no caption of image 7 \(.*b.jpg\)'):
        build(tmp_path)


def test_other_files_are_refused(write, tmp_path):
    write({3: ['c'], 7: ['e']})
    content = json.loads((tmp_path / 'captions.json').read_text())
    del content['annotations'][0]['caption']
    (tmp_path / 'captions.json').write_text(json.dumps(content))
    with pytest.raises(ValueError, match='captions.json: no COCO-style caption file'):
        build(tmp_path)
    with pytest.raises(FileNotFoundError, match='gone.json'):
        build(tmp_path, ann_file='gone.json')


def test_options_are_checked(write, tmp_path):
    write({3: ['c'], 7: ['e']})
    with pytest.raises(ValueError, match='max_captions must be positive'):
        build(tmp_path, max_captions=0)
    with pytest.raises(TypeError, match='max_caption'):
        build(tmp_path, max_caption=3)
