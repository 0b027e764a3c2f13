"""tools/misc/make_text_embeddings.py: what it stores is what is read, under the same names."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from densevlm_mm.vlm import build_vocabulary, class_embeddings, load_class_embeddings, load_vlm

TOOL = Path(__file__).parents[2] / 'tools' / 'misc' / 'make_text_embeddings.py'
NAMES = ['car', 'tree', 'star']


@pytest.fixture(scope='module')
def main() -> Callable[[list[str]], int]:
    return runpy.run_path(str(TOOL))['main']


@pytest.fixture
def command(tiny_arch, tmp_path) -> list[str]:
    """All that is needed but ``--out``."""
    (tmp_path / 'arch.json').write_text(json.dumps(tiny_arch()))
    (tmp_path / 'words.txt').write_text('a photo of a {}\n')
    build_vocabulary(NAMES).save(tmp_path / 'names.json')
    torch.save({'state_dict': load_vlm(tiny_arch()).state_dict()}, tmp_path / 'clip.pt')
    files = {'arch': 'arch.json', 'checkpoint': 'clip.pt', 'vocabulary': 'names.json', 'templates': 'words.txt'}
    return [word for option, name in files.items() for word in (f'--{option}', str(tmp_path / name))]


@pytest.mark.parametrize('background', [False, True])  # the tiny tower does not know that word, but others
def test_stores_what_the_text_tower_says(main, command, tiny_arch, tmp_path, capsys, background):
    out = tmp_path / 'new' / 'texts.pt'
    assert main([*command, '-o', str(out), *(['--background', 'sky', 'sand'] if background else [])]) == 0
    names = NAMES + ['background'] * background
    assert capsys.readouterr().out == f'{out}: {len(names)} embeddings of width 16\n'
    words = class_embeddings(load_vlm(tiny_arch(), tmp_path / 'clip.pt'), [*NAMES, 'sky', 'sand'], ['a photo of a {}'])
    expected = torch.cat([words[:3], words[3:].mean(0, keepdim=True)])[: len(names)]
    torch.testing.assert_close(load_class_embeddings(out, names, 16), expected)
    assert list(torch.load(out, weights_only=True)) == ['embeddings', 'names']
    with pytest.raises(ValueError, match="position 0 is 'car', not 'tree'"):
        load_class_embeddings(out, ['tree', 'car', *names[2:]], 16)


def test_complaints_leave_nothing(main, command, tmp_path, capsys):
    out = tmp_path / 'texts.pt'
    for option, value, message in (
        ('--checkpoint', str(tmp_path / 'gone.pt'), 'does not exist'),
        ('--vocabulary', 'ov_cocoo', 'unknown vocabulary'),
        ('--templates', 'vildd', 'unknown prompt templates'),
        ('--background', 'haze', "unknown words ['haze']"),
    ):
        assert main([*command, option, value, '-o', str(out)]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command, '-o', str(tmp_path / 'texts.npy')])
    assert 'must end in .pt' in capsys.readouterr().err
    assert not list(tmp_path.glob('*texts*'))
