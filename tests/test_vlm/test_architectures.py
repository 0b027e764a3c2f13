from __future__ import annotations

import json

import pytest
import torch
from open_clip import get_model_config
from open_clip.model import CLIP
from open_clip.transformer import QuickGELU
from torch import nn

from densevlm_mm.vlm import VLM, load_vlm
from densevlm_mm.vlm.architectures import build_text_tower, build_vision_tower, resolve_arch
from densevlm_mm.vlm.checkpoints import rename_keys
from densevlm_mm.vlm.towers import EvaTower, OpenAITower


@pytest.mark.parametrize(('name', 'embed_dim', 'native', 'depth'), [
    ('EVA02-CLIP-B-16', 512, (224, 224), 12),
    ('EVA02-CLIP-L-14-336', 768, (336, 336), 24),
    ('EVA02-B-16', 512, (224, 224), 12),
    ('EVA02-L-14-336', 768, (336, 336), 24),
])  # fmt: skip
def test_eva_by_name(name, embed_dim, native, depth):
    with torch.device('meta'):
        tower = build_vision_tower(resolve_arch(name))
    assert isinstance(tower, EvaTower)
    assert (tower.embed_dim, tower.image_size, len(tower.blocks)) == (embed_dim, native, depth)


@pytest.mark.parametrize('name', ['ViT-B-16-quickgelu', 'ViT-B-32', 'ViT-L-14-336', 'ViT-H-14', 'ViT-M-16-alt'])
def test_open_clip_s_names_build_open_clip_s_models(name):
    with torch.device('meta'):
        ours, theirs = VLM(name), CLIP(**get_model_config(name))
    expected = {key: value.shape for key, value in rename_keys(theirs.state_dict(), ours).items()}
    assert {key: value.shape for key, value in ours.state_dict().items()} == expected
    assert ours.visual.grid_of(torch.empty(1, 3, *ours.visual.image_size)) == theirs.visual.grid_size
    activation = QuickGELU if name.endswith('quickgelu') else nn.GELU
    for tower in (ours.visual, ours.text):
        used = [module for module in tower.modules() if isinstance(module, (QuickGELU, nn.GELU))]
        assert used
        assert all(type(module) is activation for module in used)


def test_a_mapping_is_taken_as_it_is_and_left_alone(tiny_arch):
    arch = tiny_arch('openai')
    assert resolve_arch(arch) == tiny_arch('openai')
    assert isinstance(build_vision_tower(arch), OpenAITower)
    build_text_tower(arch)
    assert arch == tiny_arch('openai')


def test_non_square_native_images(tiny_arch):
    arch = tiny_arch('openai')
    arch['vision_cfg']['image_size'] = [32, 80]
    tower = build_vision_tower(arch)
    assert tower.image_size == (32, 80)
    assert tower.trunk.positional_embedding.shape == (1 + 4 * 10, 64)
    assert tower.encode_dense(torch.randn(1, 3, 32, 80)).shape == (1, 48, 4, 10)


def test_words_set_the_size_of_the_text_vocabulary(word_arch):
    assert build_text_tower(word_arch).vocab_size == len(word_arch['text_cfg']['words']) + 3


@pytest.mark.parametrize('name', ['EVA02-CLIP-B-14', 'ViT-B-15', ''])
def test_unknown_name(name):
    with pytest.raises(ValueError, match=rf"unknown arch '{name}'; known: \['EVA02-CLIP-B-16', .* and open_clip's"):
        resolve_arch(name)


@pytest.mark.parametrize('key', ['embed_dim', 'vision_cfg', 'text_cfg'])
def test_missing_key(tiny_arch, key):
    arch = tiny_arch('eva')
    del arch[key]
    with pytest.raises(ValueError, match=rf"the model config lacks \['{key}'\]"):
        resolve_arch(arch)


@pytest.mark.parametrize(('family', 'part', 'where'), [
    ('eva', None, 'the model config'),
    ('eva', 'vision_cfg', 'vision_cfg of an EVA tower'),
    ('openai', 'vision_cfg', 'vision_cfg of an OpenAI-style tower'),
    ('openai', 'text_cfg', 'text_cfg'),
])  # fmt: skip
def test_unknown_key(tiny_arch, family, part, where):
    arch = tiny_arch(family)
    (arch[part] if part else arch)['widht'] = 3
    with pytest.raises(ValueError, match=rf"unknown key\(s\) \['widht'\] in {where}; known: \["):
        VLM(arch)


@pytest.mark.parametrize(('name', 'reason'), [
    ('RN50', 'no dense path is defined for a ResNet; use EVA02-CLIP-B-16'),
    ('convnext_base', 'no dense path is defined for convnext_base; use EVA02-CLIP-B-16'),
    ('EVA02-L-14', 'no dense path is defined for eva02_large_patch14_clip_224'),
    ('ViT-L-14-CLIPA', r"no dense path is defined for ViTs with \['no_ln_pre', 'final_ln_after_pool'\]"),
    ('roberta-ViT-B-32', 'text towers from Hugging Face are not supported'),
    ('coca_ViT-B-32', r"unknown key\(s\) \['multimodal_cfg'\]"),
])  # fmt: skip
def test_unsupported_models_are_refused_with_a_sentence(name, reason):
    with torch.device('meta'), pytest.raises(ValueError, match=reason):
        VLM(name)


@pytest.mark.parametrize(('key', 'value'), [
    ('attentional_pool', True), ('pool_type', 'avg'), ('pos_embed_type', 'sin_cos_2d'), ('patch_dropout', 0.5),
    ('qk_norm', True), ('block_type', 'custom'),
])  # fmt: skip
def test_unsupported_parts_of_a_vit_are_refused_by_name(tiny_arch, key, value):
    arch = tiny_arch('openai')
    arch['vision_cfg'][key] = value
    with pytest.raises(ValueError, match=rf'no dense path is defined for ViTs with .*{key}'):
        VLM(arch)


@pytest.mark.parametrize('family', ['eva', 'openai'])
def test_a_stored_config_may_describe_itself(parity_dir, family):
    stored = json.loads((parity_dir / f'{family}_tiny.json').read_text())
    assert {'kind', 'keys'} <= set(stored)
    assert load_vlm(stored).embed_dim == stored['embed_dim']
