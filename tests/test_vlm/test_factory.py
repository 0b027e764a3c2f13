from __future__ import annotations

import inspect

import pytest
import torch

from densevlm_mm.vlm import VLM, factory, load_vlm
from densevlm_mm.vlm.factory import locate_checkpoint, pretrained_config


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


def test_a_folder_does_not_hide_the_tag_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'laion2b_s32b_b82k').mkdir()
    monkeypatch.setattr(factory, 'download_pretrained', lambda cfg: str(tmp_path / 'fetched'))
    assert locate_checkpoint('ViT-L-14', 'laion2b_s32b_b82k') == tmp_path / 'fetched'
    assert pretrained_config('ViT-L-14', 'laion2b_s32b_b82k')['mean'] == (0.5, 0.5, 0.5)


def test_a_folder_is_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'checkpoint .* is a folder, nor a pretrained tag of ViT-B-32'):
        locate_checkpoint('ViT-B-32', tmp_path)


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


@pytest.fixture
def tagged(monkeypatch, tmp_path):
    """open_clip knows one tag of 'tiny-arch', whose file holds nothing to load."""

    def set_up(arch: dict, **statistics: object) -> None:
        monkeypatch.setattr(factory, 'VLM', lambda name, dense_mode: VLM(arch, dense_mode=dense_mode))
        monkeypatch.setattr(factory, 'resolve_arch', lambda name: arch)
        monkeypatch.setattr(factory, 'list_pretrained_tags_by_model', lambda name: ['some_tag'])
        monkeypatch.setattr(factory, 'get_pretrained_cfg', lambda name, tag: statistics)
        monkeypatch.setattr(factory, 'download_pretrained', lambda cfg: tmp_path / 'weights.pt')
        monkeypatch.setattr(factory, 'load_checkpoint', lambda vlm, path, **kwargs: None)

    return set_up


def test_images_are_normalised_as_the_tag_was_trained(tagged, word_arch):
    """open_clip's laion2b_s32b_b82k of ViT-L-14 wants (0.5, 0.5, 0.5), its other tags CLIP's numbers."""
    tagged(word_arch, mean=[0.5, 0.4, 0.3], std=[0.2, 0.2, 0.1], url='x')
    vlm = load_vlm('tiny-arch', 'some_tag')
    assert vlm.visual.mean == (0.5, 0.4, 0.3)
    assert vlm.visual.std == (0.2, 0.2, 0.1)
    assert type(vlm.visual).mean == (0.48145466, 0.4578275, 0.40821073)


def test_a_tag_that_says_nothing_keeps_the_tower_s_normalisation(tagged, word_arch):
    tagged(word_arch, url='x')
    assert load_vlm('tiny-arch', 'some_tag').visual.mean == load_vlm('tiny-arch').visual.mean


@pytest.mark.parametrize(('arch', 'tag', 'mean'), [
    ('ViT-L-14', 'laion2b_s32b_b82k', 0.5),
    ('ViT-L-14', 'laion400m_e32', 0.48145466),
    ('ViT-B-16-SigLIP2', 'webli', 0.5),
    ('ViT-L-14-CLIPA', 'datacomp1b', 0.485),
])  # fmt: skip
def test_what_open_clip_knows_of_a_tag(arch, tag, mean):
    assert pretrained_config(arch, tag)['mean'][0] == mean


@pytest.mark.parametrize('checkpoint', ['no_such_tag', 'hf-hub:owner/model'])
@pytest.mark.parametrize('arch', ['ViT-B-16', {'embed_dim': 1}])
def test_nothing_is_known_of_anything_else(arch, checkpoint):
    assert pretrained_config(arch, checkpoint) == {}


def test_a_file_is_not_the_tag_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'laion2b_s32b_b82k').touch()
    assert pretrained_config('ViT-L-14', 'laion2b_s32b_b82k') == {}
