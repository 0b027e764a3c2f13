"""What a file says about its model, and that loading listens to it."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from densevlm_mm.vlm import CheckpointError, checkpoints, load_vlm, read_meta, read_state_dict
from densevlm_mm.vlm.checkpoints import load_checkpoint, read_checkpoint

STATE = {'visual.a': torch.arange(3.0), 'logit_scale': torch.tensor(4.6)}
META = {'arch': {'embed_dim': 12, 'text_cfg': {'words': ['a', 'cat']}}, 'dense_mode': 'csa', 'version': '1.0'}


@pytest.mark.parametrize(('meta', 'expected'), [
    ({'vlm': META}, META),
    ({'vlm': META, 'cfg': 'x = 1', 'dataset_meta': {'palette': np.zeros(3)}}, META),
    ({'vlm': {**META, 'more': np.float64(1)}}, {}),  # no plain entry: none of it counts
    ({'vlm': 'text'}, {}),
    ({'vlm': None}, {}),
    ('text', {}),
    (None, {}),
])  # fmt: skip
def test_meta(tmp_path, meta, expected):
    torch.save({'meta': meta, 'state_dict': STATE}, tmp_path / 'weights.pth')
    assert read_meta(tmp_path / 'weights.pth') == expected
    assert set(read_state_dict(tmp_path / 'weights.pth')) == set(STATE)


@pytest.mark.parametrize(('header', 'expected'), [
    ({'densevlm_mm': '{"vlm": {"dense_mode": "qq"}, "epoch": 3}'}, {'dense_mode': 'qq'}),
    ({'densevlm_mm': '[]'}, {}),
    ({'format': 'pt'}, {}),
])  # fmt: skip
def test_meta_of_safetensors(tmp_path, header, expected):
    save_file(STATE, tmp_path / 'weights.safetensors', header)
    assert read_meta(tmp_path / 'weights.safetensors') == expected
    assert set(read_state_dict(tmp_path / 'weights.safetensors')) == set(STATE)


def test_a_damaged_header_of_safetensors(tmp_path):
    save_file(STATE, tmp_path / 'weights.safetensors', {'densevlm_mm': '{'})
    with pytest.raises(CheckpointError, match='damaged'):
        read_meta(tmp_path / 'weights.safetensors')


@pytest.fixture
def trained_in(word_vlm, tmp_path):
    """Saves weights that say in which dense mode they were trained."""

    def save(mode: str | None) -> Path:
        content = {'meta': {'vlm': {'dense_mode': mode}}, 'state_dict': word_vlm.state_dict()}
        torch.save(content, tmp_path / 'trained.pth')
        return tmp_path / 'trained.pth'

    return save


@pytest.mark.parametrize(('stored', 'asked', 'expected'), [
    ('csa', None, 'csa'),
    ('csa', 'csa', 'csa'),
    (None, None, 'value'),
    (None, 'csa', 'csa'),
    ('value', 'value', 'value'),
])  # fmt: skip
@pytest.mark.filterwarnings('error')
def test_the_dense_mode_is_the_file_s_unless_asked_for(word_arch, trained_in, stored, asked, expected):
    assert load_vlm(word_arch, trained_in(stored), dense_mode=asked).dense_mode == expected


def test_another_dense_mode_than_trained_is_warned_of(word_arch, word_vlm, trained_in):
    file = trained_in('csa')
    wanted = "trained.pth was trained in dense mode 'csa'.* in mode 'qq'.*dense_mode='csa' where the config names this"
    with pytest.warns(UserWarning, match=wanted):
        assert load_vlm(word_arch, file, dense_mode='qq').dense_mode == 'qq'
    with pytest.warns(UserWarning, match="'csa'.* in mode 'value'"):
        load_checkpoint(word_vlm, file)
    assert word_vlm.dense_mode == 'value'


def test_an_unknown_dense_mode_in_a_file(word_arch, trained_in):
    with pytest.raises(CheckpointError, match="trained.pth was trained in dense mode 'magic', but EvaTower has no"):
        load_vlm(word_arch, trained_in('magic'))


@pytest.mark.parametrize(
    ('part', 'key', 'value'),
    [(None, 'quick_gelu', True), ('vision_cfg', 'head_width', 48), ('text_cfg', 'heads', 4)],
)
def test_what_no_shape_shows_is_compared(tiny_arch, tmp_path, part, key, value):
    other = copy.deepcopy(tiny_arch('eva'))
    (other if part is None else other[part])[key] = value
    torch.save(
        {'meta': {'vlm': {'arch': other}}, 'state_dict': load_vlm(tiny_arch('eva')).state_dict()}, tmp_path / 'o.pth'
    )
    with pytest.raises(CheckpointError, match=f'{key}: {value} in the file'):
        load_vlm(tiny_arch('eva'), tmp_path / 'o.pth')


def test_openais_archives_want_quickgelu(tiny_arch, tmp_path, monkeypatch):
    vlm = load_vlm({**tiny_arch('openai'), 'quick_gelu': False})
    torch.save(vlm.state_dict(), tmp_path / 'weights.pt')
    checkpoint = read_checkpoint(tmp_path / 'weights.pt')
    load_checkpoint(vlm, checkpoint)
    monkeypatch.setattr(checkpoints, 'file_format', lambda path: 'TorchScript')
    with pytest.raises(CheckpointError, match='quick_gelu: True in the file.*\n.*-quickgelu'):
        load_checkpoint(vlm, checkpoint)
