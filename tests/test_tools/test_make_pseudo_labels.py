"""tools/dataset_converters/make_pseudo_labels.py: proposals, pseudo-labels and readable complaints."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

from densevlm_mm.vlm import load_vlm

TOOL = Path(__file__).parents[2] / 'tools' / 'dataset_converters' / 'make_pseudo_labels.py'


@pytest.fixture(scope='module')
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location('make_pseudo_labels', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def instances(miniworld) -> Path:
    return miniworld / 'annotations' / 'instances_train2017.json'


@pytest.fixture
def config(tiny_arch, tmp_path) -> Path:
    """A config file whose student has weights."""
    torch.save({'state_dict': load_vlm(tiny_arch()).state_dict()}, tmp_path / 'student.pt')
    model = {'student': {'arch': tiny_arch(), 'checkpoint': str(tmp_path / 'student.pt'), 'trainable_blocks': 2}}
    (tmp_path / 'config.py').write_text(f'model = {model!r}')
    return tmp_path / 'config.py'


def test_proposals(tool, instances, tmp_path, capsys):
    out = tmp_path / 'new' / 'proposals.json'
    assert tool.main([str(instances), str(out), '--random-boxes', '2', '--grid', '2', '3']) == 0
    content, given = json.loads(out.read_text()), json.loads(instances.read_text())
    assert len(content['annotations']) == len(given['annotations']) + 8 * len(given['images'])
    assert 'categories' not in content
    assert f'{len(content["annotations"])} boxes of 24 images' in capsys.readouterr().out
    assert tool.main([str(instances), str(out), '--drop-boxes', '--random-boxes', '2']) == 0
    assert len(json.loads(out.read_text())['annotations']) == 48


def test_pseudo_labels(tool, instances, miniworld, config, tmp_path):
    out = tmp_path / 'pseudo.json'
    command = [str(instances), str(out), '--nouns', str(miniworld / 'annotations' / 'panoptic_train2017.json')]
    command += ['--image-folder', str(miniworld / 'train2017'), '--vlm', str(config), '--device', 'cpu']
    assert tool.main([*command, '--template', 'a photo of a {}.']) == 0
    content = json.loads(out.read_text())
    assert len(content['categories']) == 18
    ids = {category['id'] for category in content['categories']}
    assert {annotation['category_id'] for annotation in content['annotations']} <= ids
    assert all(1 / 18 <= annotation['score'] <= 1 for annotation in content['annotations'])


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--drop-boxes'], 'no boxes are asked for'),
        (['--nouns', 'gone.txt', '--vlm', 'ViT-B-16', '--image-folder', '.'], 'give --checkpoint'),
    ],
)
def test_complaints(tool, instances, tmp_path, capsys, options, message):
    assert tool.main([str(instances), str(tmp_path / 'out.json'), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / 'out.json').exists()


def test_input_that_is_missing_or_no_json(tool, tmp_path, capsys):
    (tmp_path / 'broken.json').write_text('{')
    for name, message in (('gone.json', 'gone.json'), ('broken.json', 'broken.json: not a JSON file')):
        assert tool.main([str(tmp_path / name), str(tmp_path / 'out.json')]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    'options', [['--random-boxes', '1'], ['--nouns', 'n.txt', '--vlm', 'a', '--image-folder', 'b']]
)
def test_source_is_not_overwritten(tool, tmp_path, monkeypatch, capsys, options):
    (tmp_path / 'instances.json').write_text('{}')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        tool.main(['instances.json', str(tmp_path / 'instances.json'), *options])
    assert 'instances.json is the source itself' in capsys.readouterr().err
    assert (tmp_path / 'instances.json').read_text() == '{}'


def test_nouns_need_a_model(tool, instances, tmp_path, capsys):
    with pytest.raises(SystemExit):
        tool.main([str(instances), str(tmp_path / 'out.json'), '--nouns', 'nouns.txt'])
    assert '--nouns needs --vlm and --image-folder' in capsys.readouterr().err
