from __future__ import annotations

import json
from pathlib import Path

import pytest

from densevlm_mm.datasets import AddCaption


@pytest.fixture
def ann_file(tmp_path: Path) -> str:
    path = tmp_path / 'captions.json'
    annotations = [{'image_id': 7, 'caption': 'a cat'}, {'image_id': 7, 'caption': 'two cats'}]
    path.write_text(json.dumps({'annotations': annotations}))
    return str(path)


def test_epochs_take_the_captions_in_turn(ann_file: str) -> None:
    add = AddCaption(ann_file)
    captions = [add({'img_id': 7, 'img_path': 'x.jpg', 'epoch': epoch})['caption'] for epoch in range(3)]
    assert captions == ['a cat', 'two cats', 'a cat']
    assert add({'img_id': 7, 'img_path': 'x.jpg'})['caption'] == 'a cat'


def test_an_image_without_caption_is_named(ann_file: str) -> None:
    with pytest.raises(ValueError, match=r'captions\.json: has no caption of image 8 .*y\.jpg'):
        AddCaption(ann_file)({'img_id': 8, 'img_path': 'y.jpg'})


def test_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match='nowhere.json'):
        AddCaption(str(tmp_path / 'nowhere.json'))
    foreign = tmp_path / 'foreign.json'
    foreign.write_text('{"annotations": [{"image_id": 1}]}')
    with pytest.raises(ValueError, match='foreign.json: no COCO-style caption file'):
        AddCaption(str(foreign))
