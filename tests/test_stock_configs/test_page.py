"""What the page says about the full-size towers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from mmengine.config import Config

from densevlm_mm.vlm.architectures import resolve_arch
from densevlm_mm.vlm.towers import CLIP_MEAN, CLIP_STD

PAGE = Path(__file__).parents[2] / 'docs' / 'swap_backbone.md'
ROW = r'^\| `([\w-]+)` \| (\d+) \| `\(([\d, ]+)\)` \| (\d+) \| (\d+) \|$'
CONFIGS = ('my_faster_rcnn', 'my_mask_rcnn', 'my_retinanet', 'my_upernet', 'my_fcn')


@pytest.mark.parametrize('row', re.findall(ROW, PAGE.read_text('utf-8'), re.MULTILINE), ids=lambda row: row[0])
def test_table_of_towers(row):
    vision = resolve_arch(row[0])['vision_cfg']
    indices = [int(i) for i in row[2].split(',')]
    assert [int(row[i]) for i in (1, 3, 4)] == [vision[key] for key in ('layers', 'width', 'patch_size')]
    assert indices == sorted(indices)
    assert indices[-1] == vision['layers'] - 1


def test_every_block_is_named_and_the_table_is_found(page):
    text = PAGE.read_text('utf-8')
    assert len(page) == text.count('```python')
    assert len(re.findall(ROW, text, re.MULTILINE)) == text.count('| `EVA02-') + text.count('| `ViT-')


@pytest.mark.parametrize('name', CONFIGS)
def test_configs_fit_the_tower_they_name(name, page, tmp_path):
    path = tmp_path / f'{name}.py'
    path.write_text(page[f'{name}.py'])
    model = Config.fromfile(path).model
    assert model.data_preprocessor.mean == pytest.approx([255 * m for m in CLIP_MEAN], abs=1e-3)
    assert model.data_preprocessor.std == pytest.approx([255 * s for s in CLIP_STD], abs=1e-3)
    assert model.data_preprocessor.bgr_to_rgb is True
    width = resolve_arch(model.backbone.arch)['vision_cfg']['width']
    users = [model[part] for part in ('neck', 'decode_head', 'auxiliary_head') if part in model]
    assert users
    for user in users:
        channels = user.in_channels if isinstance(user.in_channels, list) else [user.in_channels]
        assert channels == [width] * len(channels)
