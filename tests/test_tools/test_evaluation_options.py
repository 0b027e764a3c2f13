"""What docs/evaluation.md says one can ask of an evaluation: other sizes, crops, confusions, retrieval."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config

ROOT = Path(__file__).parents[2]
PIPELINE = 'test_dataloader__dataset__pipeline'


@pytest.fixture
def evaluate(tool, configs, checkpoints, tmp_path):
    """Evaluates the student with overrides; returns what region_accuracy.json holds."""

    def run(**options: object) -> dict:
        out = tmp_path / 'figures.json'
        arguments = (configs['evaluate'], checkpoints['student'], '--work-dir', tmp_path / 'run')
        tool('test', *arguments, test_evaluator__out_json=out, **options)
        return json.loads(out.read_text())

    return run


def test_input_size(evaluate):
    at_64 = evaluate()
    assert evaluate(**{f'{PIPELINE}__1__size': 64}) == at_64
    at_96 = evaluate(**{f'{PIPELINE}__1__size': 96})
    assert at_96['groups'] == at_64['groups'] and at_96['metrics'] != at_64['metrics']


def test_crops(evaluate):
    plain, cropped = evaluate(), evaluate(**{f'{PIPELINE}__2__crop_size': 32})
    added = {key: value for key, value in cropped['metrics'].items() if key not in plain['metrics']}
    assert set(added) == {f'crops.{kind}.macc{k}' for kind in ('thing', 'stuff') for k in (1, 5)}
    assert {key: cropped['metrics'][key] for key in plain['metrics']} == pytest.approx(plain['metrics'])


def test_confusion(evaluate, tmp_path):
    content = evaluate(test_evaluator__confusion=True)
    assert (tmp_path / 'region_confusion.png').stat().st_size > 10_000
    with np.load(tmp_path / 'region_confusion.npz') as file:
        counts, regions, is_thing = file['counts'], file['regions'], file['is_thing']
    assert regions[is_thing].sum() == content['groups']['thing']['regions']
    assert content['metrics']['bias'] == pytest.approx(
        100 * counts[~is_thing][:, is_thing].sum() / regions[~is_thing].sum()
    )


RETRIEVAL = """
_base_ = ['{configs}/datasets/coco_captions.py', '{configs}/default_runtime.py']
model = dict(type='densevlm_mm.ImageTextEncoder', vlm=dict(arch={arch}))
test_dataloader = dict(batch_size=3, num_workers=0, dataset=dict(data_root='{{{{$MINIWORLD_DATA:}}}}'))
"""


def test_retrieval(tool, checkpoints, tiny_arch, tmp_path):
    config, out = tmp_path / 'retrieval.py', tmp_path / 'figures.json'
    config.write_text(RETRIEVAL.format(configs=ROOT / 'configs' / '_base_', arch=tiny_arch()))
    options = {f'{PIPELINE}__1__size': 32, 'test_evaluator__out_json': out}
    tool('test', config, checkpoints['student'], '--work-dir', tmp_path / 'run', **options)
    content = json.loads(out.read_text())
    assert (content['images'], content['captions']) == (8, 8)
    directions = ('image_to_text', 'text_to_image')
    assert set(content['metrics']) == {f'{direction}.R@{k}' for direction in directions for k in (1, 5, 10)}
    assert content['metrics']['text_to_image.R@10'] == 100  # of eight images


def documented_options() -> list[tuple[str, str, str]]:
    """Config, key and value of every override in docs/evaluation.md."""
    text = (ROOT / 'docs' / 'evaluation.md').read_text().replace('\\\n', ' ')
    found = []
    for line in text.splitlines():
        if command := re.match(
            r'(?:python|bash) tools/(?:dist_)?test\.\w+ (configs/\S+\.py).* --cfg-options (.+)', line
        ):
            found += [(command[1], *pair.split('=', 1)) for pair in command[2].split('#')[0].split()]
    return found


def test_documented_options_reach_what_they_name():
    options = documented_options()
    assert len(options) >= 4
    for path, key, value in options:
        cfg = Config.fromfile(ROOT / path)
        *parents, name = key.split('.')
        node = cfg
        for parent in parents:
            node = node[int(parent) if parent.isdigit() else parent]
        known = {'size': 'Resize', 'crop_size': 'LoadPanopticRegions', 'confusion': 'RegionAccuracy'}
        known |= {'per_class': 'RegionAccuracy'}
        assert known.get(name, '') in node.get('type', ''), key
        assert name in node or name in known, f'{key}={value}'
