"""The tower that the documentation builds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from open_clip import list_models

from densevlm_mm.vlm.towers import VisionTower

PAGE = Path(__file__).parents[3] / 'docs' / 'towers.md'


@pytest.fixture(scope='module')
def example() -> dict:
    *_, code = re.findall(r'```python\n(.*?)```', PAGE.read_text(encoding='utf-8'), re.DOTALL)
    names: dict = {}
    exec(compile(code, str(PAGE), 'exec'), names)
    return names


def test_the_documented_tower_works(example):
    tower: VisionTower = example['tower']
    assert example['dense'].shape == (2, 24, 8, 6)
    image, dense = tower.encode_image_and_dense(torch.randn(2, 3, 64, 48))
    assert dense.shape == (2, 24, 8, 6)
    torch.testing.assert_close(image, dense.mean((2, 3)))
    maps = tower.run(torch.randn(1, 3, 64, 48), indices=[0, 1]).maps
    assert [m.shape[1:] for m in maps] == [(16, 16, 12), (32, 8, 6)]


def test_what_of_it_trains(example):
    tower = example['TinyTower'](8)
    tower.set_trainable(1)
    tower.encode_dense(torch.randn(1, 3, 32, 32)).sum().backward()
    assert {name for name, p in tower.named_parameters() if p.grad is not None} == {'layers.1.weight', 'layers.1.bias'}


def test_the_page_names_models_that_exist():
    starts = 'EVA02|ViT|RN|convnext_|MobileCLIP|vit_|roberta'
    names = set(re.findall(rf'`((?:{starts})[\w-]+)`', PAGE.read_text(encoding='utf-8')))
    assert len(names) > 10
    assert {name for name in names if not name.startswith('EVA02-CLIP')} <= set(list_models())
