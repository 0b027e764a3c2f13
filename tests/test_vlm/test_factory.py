from __future__ import annotations

import inspect

import pytest
import torch

from densevlm_mm.vlm import factory, load_vlm
from densevlm_mm.vlm.factory import locate_checkpoint


@pytest.fixture(autouse=True)
def no_network(monkeypatch) -> None:
    """Whatever would fetch something fails the test instead."""

    def fetch(*args: object, **kwargs: object) -> None:
        raise AssertionError(f'wants to fetch {args}')

    monkeypatch.setattr(factory, 'download_pretrained', fetch)
    monkeypatch.setattr(factory, 'download_pretrained_from_hf', fetch)


def test_signature():
    assert str(inspect.signature(load_vlm)).startswith('(arch:')
    assert list(inspect.signature(load_vlm).parameters) == ['arch', 'checkpoint', 'device', 'dtype', 'dense_mode']
    defaults = [parameter.default for parameter in inspect.signature(load_vlm).parameters.values()]
    assert defaults[1:] == [None, 'cpu', None, None]


def test_the_api_floor_gives_the_same_function():
    apis = pytest.importorskip('densevlm_mm.apis')
    assert apis.load_vlm is load_vlm


def test_a_loaded_model_is_in_eval_mode(vlm):
    assert not any(module.training for module in vlm.modules())
    assert vlm.dense_mode == 'value'
    assert vlm.device == torch.device('cpu')


def test_same_seed_same_random_weights(word_arch):
    first, second = [], []
    for states in (first, second):
        torch.manual_seed(3)
        states.append(load_vlm(word_arch).state_dict())
    assert all(torch.equal(first[0][key], second[0][key]) for key in first[0])


@pytest.mark.parametrize(('dtype', 'expected'), [
    (None, torch.float32),
    ('float32', torch.float32),
    ('bfloat16', torch.bfloat16),
    (torch.float16, torch.float16),
])  # fmt: skip
def test_dtype(word_arch, dtype, expected):
    vlm = load_vlm(word_arch, dtype=dtype)
    assert {parameter.dtype for parameter in vlm.parameters()} == {expected}


@pytest.mark.parametrize('dtype', ['int8', 'bf16', 'nn', torch.int64, 16])
def test_no_floating_dtype(word_arch, dtype):
    with pytest.raises(ValueError, match='is no floating dtype; use float32, bfloat16 or float16'):
        load_vlm(word_arch, dtype=dtype)


def test_device(word_arch):
    with torch.device('meta'):
        vlm = load_vlm(word_arch, device='meta')
    assert vlm.device.type == 'meta'
    assert vlm.encode_image(torch.empty(2, 3, 24, 32, device='meta')).shape == (2, 12)


@pytest.mark.parametrize('mode', ['value', 'vanilla'])
def test_dense_mode(tiny_vlm, family, mode):
    assert tiny_vlm(family, dense_mode=mode).dense_mode == mode


def test_unknown_dense_mode(word_arch):
    with pytest.raises(ValueError, match=r"EvaTower has no dense mode 'valeu'; it defines \('value', 'vanilla'"):
        load_vlm(word_arch, dense_mode='valeu')


@pytest.mark.parametrize('name', ['openai', 'checkpoints/densevlm.pt', 'lyhisme/DenseVLM', 'https://example.org/a.pt'])
@pytest.mark.parametrize('arch', ['EVA02-CLIP-B-16', {'embed_dim': 1}])
def test_neither_a_file_nor_a_tag(arch, name):
    with pytest.raises(FileNotFoundError, match=f'checkpoint {name} does not exist$'):
        locate_checkpoint(arch, name)


def test_an_unknown_tag_is_told_the_known_ones():
    with pytest.raises(FileNotFoundError, match=r"nor a pretrained tag of ViT-B-32: \['openai', 'laion400m"):
        locate_checkpoint('ViT-B-32', 'laion9b')


def test_a_file_goes_before_a_tag_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'openai').touch()
    assert locate_checkpoint('ViT-B-32-quickgelu', 'openai').samefile(tmp_path / 'openai')


def test_tags_and_hub_names_go_to_open_clip(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(factory, 'download_pretrained', lambda cfg: asked.append(cfg['hf_hub']) or str(tmp_path / 'a'))
    monkeypatch.setattr(factory, 'download_pretrained_from_hf', lambda name: asked.append(name) or str(tmp_path / 'b'))
    assert locate_checkpoint('ViT-B-32-quickgelu', 'openai') == tmp_path / 'a'
    assert locate_checkpoint('ViT-B-32-quickgelu', 'hf-hub:owner/model') == tmp_path / 'b'
    assert asked == ['timm/vit_base_patch32_clip_224.openai/', 'owner/model']


def test_an_unknown_hub_name_is_a_missing_file(monkeypatch, tmp_path):
    """Offline, as all tests run; only an empty cache is looked at."""
    monkeypatch.undo()
    monkeypatch.setenv('HF_HUB_CACHE', str(tmp_path))
    with pytest.raises(FileNotFoundError, match='no-such-owner/no-such-model'):
        locate_checkpoint('ViT-B-32', 'hf-hub:no-such-owner/no-such-model')


def test_a_tag_with_the_other_activation_is_refused():
    """OpenAI's weights under GELU give numbers that look right and are not."""
    with pytest.raises(ValueError, match=r"'openai' has the other GELU: add or remove '-quickgelu'"):
        locate_checkpoint('ViT-B-32', 'openai')
