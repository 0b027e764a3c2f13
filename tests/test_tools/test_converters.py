"""tools/model_converters and tools/misc/describe_checkpoint.py, on what tools/train.py leaves behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from densevlm_mm.vlm import load_vlm, read_meta, read_state_dict

ROOT = Path(__file__).parents[2]


@pytest.fixture
def arch_file(tmp_path, tiny_arch) -> Path:
    (tmp_path / 'tiny.json').write_text(json.dumps(tiny_arch()))
    return tmp_path / 'tiny.json'


def test_publish_what_training_left(call, trained, tmp_path, tiny_arch, arch_file):
    out, source = tmp_path / 'out', trained / 'iter_10.pth'
    code, output, _ = call('model_converters/publish_model', source, out / 's.pth', '--arch', arch_file)
    (published,) = out.iterdir()
    digest = published.stem.removeprefix('s-')
    assert (code, len(digest)) == (0, 8)
    assert output.splitlines()[0].startswith(f'{published}: ')
    dropped = set(output.splitlines()[1].removeprefix('left out: ').split(', '))
    assert {'optimizer', 'raw_trainable', 'message_hub', 'param_schedulers', 'meta.cfg'} <= dropped
    assert set(torch.load(published, weights_only=True)) == {'meta', 'state_dict'}
    _, told, _ = call('misc/describe_checkpoint', '--json', published)
    assert json.loads(told)['sha256'].startswith(digest)
    student = load_vlm(tiny_arch(), published).state_dict()
    saved = torch.load(source, weights_only=False)['state_dict']
    assert all(torch.equal(value, saved[f'vlm.{key}']) for key, value in student.items())


def test_there_and_back(call, checkpoints, tmp_path, arch_file):
    convert, source = 'model_converters/convert_vlm', checkpoints['student']
    steps = [('ours.pth', 'ours'), ('theirs.pt', 'reference'), ('open.safetensors', 'open_clip'), ('back.pth', 'ours')]
    for target, to in steps:
        code, output, _ = call(convert, source, tmp_path / target, '--arch', arch_file, '--to', to)
        assert code == 0
        assert output.startswith(f'{tmp_path / target}: ')
        source = tmp_path / target
    before, after = read_state_dict(checkpoints['student']), read_state_dict(source)
    assert set(before) == set(after)
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_half_precision_and_the_stored_arch(call, checkpoints, tmp_path, tiny_arch, arch_file):
    convert, options = 'model_converters/convert_vlm', ['--to', 'ours']
    call(convert, checkpoints['student'], tmp_path / 'a.pth', '--arch', arch_file, *options)
    code, *_ = call(convert, tmp_path / 'a.pth', tmp_path / 'b.safetensors', '--dtype', 'float16', *options)
    assert code == 0
    assert read_meta(tmp_path / 'b.safetensors')['arch'] == tiny_arch()
    assert {value.dtype for value in read_state_dict(tmp_path / 'b.safetensors').values()} == {torch.float16}


@pytest.mark.parametrize(('tool', 'options'), [
    ('model_converters/convert_vlm', ['--to', 'ours']),
    ('model_converters/publish_model', []),
])  # fmt: skip
def test_refusals_are_short_and_leave_nothing(call, checkpoints, tmp_path, tool, options):
    target, folder = tmp_path / 'out' / 'made.pth', tmp_path / 'out'
    (tmp_path / 'broken.pth').write_bytes(b'no checkpoint')
    cases = {
        'gone.pth does not exist': [tmp_path / 'gone.pth', target],
        'broken.pth is': [tmp_path / 'broken.pth', target],
        'give its arch': [checkpoints['student'], target],
        'does not fit this architecture': [checkpoints['student'], target, '--arch', 'ViT-B-32'],
        'is the source itself': [checkpoints['student'], checkpoints['student']],
        'no.json': [checkpoints['student'], target, '--arch', tmp_path / 'no.json'],
    }
    for message, arguments in cases.items():
        code, output, errors = call(tool, *arguments, *options)
        assert (code, output) == (2, '')
        assert errors.startswith('error: ')
        assert message in errors
    assert not folder.exists() or list(folder.iterdir()) == []


def test_describe(call, checkpoints, tmp_path):
    code, output, _ = call('misc/describe_checkpoint', checkpoints['student'])
    assert code == 0
    assert 'family EVA-02, embed_dim 16, width 32, layers 2, patch 8, grid 4' in output
    code, output, errors = call('misc/describe_checkpoint', tmp_path / 'gone.pth')
    assert (code, output) == (2, '')
    assert errors == f'error: checkpoint {tmp_path / "gone.pth"} does not exist\n'
