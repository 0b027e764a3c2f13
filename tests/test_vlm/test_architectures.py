from __future__ import annotations

import json
import re

import pytest
import timm
import torch
from open_clip import CLIP, CustomTextCLIP, get_model_config, list_models
from open_clip.transformer import QuickGELU
from torch import nn

from densevlm_mm.vlm import VLM, load_vlm
from densevlm_mm.vlm.architectures import build_text_tower, build_vision_tower, resolve_arch
from densevlm_mm.vlm.checkpoints import rename_keys
from densevlm_mm.vlm.towers import EvaTower, OpenAITower

FAMILY_NAMES = ('EvaTower', 'OpenAITower', 'TimmViTTower', 'ResNetTower', 'ConvNeXtTower')
# what the names of models without a dense path start with
REFUSED = (
    'coca', 'ViTamin', 'MobileCLIP-', 'MobileCLIP2-S', 'MobileCLIP2-B', 'PE-Core', 'swin', 'vit_relpos', 'EVA01',
    'EVA02-E',
)  # fmt: skip


@pytest.mark.parametrize(('name', 'embed_dim', 'native', 'depth'), [
    ('EVA02-CLIP-B-16', 512, (224, 224), 12),
    ('EVA02-CLIP-L-14-336', 768, (336, 336), 24),
    ('EVA02-CLIP-L-14', 768, (224, 224), 24),
    ('EVA02-B-16', 512, (224, 224), 12),
    ('EVA02-L-14', 768, (224, 224), 24),
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
    ('coca_ViT-B-32', 'for CoCa, whose image embedding'),
    ('ViTamin-S', "for vitamin_small_224, which is neither a plain ViT nor a ConvNeXt of timm's"),
    ('MobileCLIP-S1', "for fastvit_mci1, which is neither a plain ViT nor a ConvNeXt of timm's"),
    ('EVA01-g-14', "for eva_giant_patch14_224, which is neither a plain ViT nor a ConvNeXt of timm's"),
])  # fmt: skip
def test_models_without_a_dense_path_are_refused_with_a_sentence(name, reason):
    expected = f'no dense path is defined {reason}.*; use EVA02-CLIP-B-16, a ViT such as ViT-B-16, a SigLIP such as'
    with torch.device('meta'), pytest.raises(ValueError, match=expected):
        VLM(name)


def test_text_towers_of_hugging_face_are_refused_with_a_sentence():
    with (
        torch.device('meta'),
        pytest.raises(ValueError, match='text tower roberta-base is not supported, since .*; use'),
    ):
        VLM('roberta-ViT-B-32')


@pytest.mark.parametrize(('key', 'value'), [
    ('attentional_pool', True), ('pool_type', 'none'), ('patch_dropout', 0.5), ('scaled_cosine_attn', True),
])  # fmt: skip
def test_unsupported_parts_of_a_vit_are_refused_by_name(tiny_arch, key, value):
    arch = tiny_arch('openai')
    arch['vision_cfg'][key] = value
    with pytest.raises(ValueError, match=rf'no dense path is defined for ViTs with {key}.*, wh.*; use EVA02'):
        VLM(arch)


@pytest.mark.parametrize(('vision_cfg', 'reason'), [
    ({'timm_model_name': 'test_convnext', 'timm_pool': 'rot_attn', 'timm_proj': ''}, 'ConvNeXts that pool by'),
    ({'timm_model_name': 'test_vit', 'timm_pool': 'max', 'timm_proj': 'linear'}, 'test_vit, whose patches'),
    ({'timm_model_name': 'vit_tiny_r_s16_p8_224', 'timm_pool': 'avg'}, 'vit_tiny_r_s16_p8_224, which is neither'),
    ({'timm_model_name': 'no_such_model'}, 'no_such_model, which is neither'),
])  # fmt: skip
def test_unsupported_models_of_timm(vision_cfg, reason):
    config = {'embed_dim': 8, 'vision_cfg': vision_cfg, 'text_cfg': {}}
    with torch.device('meta'), pytest.raises(ValueError, match=f'no dense path is defined for {reason}'):
        build_vision_tower(config)


def test_unknown_keys_of_other_towers():
    for vision_cfg, where in (
        ({'layers': [1, 1, 1, 1], 'widht': 8}, 'vision_cfg of a ResNet'),
        ({'timm_model_name': 'test_vit', 'widht': 8}, 'vision_cfg of a timm tower'),
    ):
        with pytest.raises(ValueError, match=rf"unknown key\(s\) \['widht'\] in {where}"):
            build_vision_tower({'embed_dim': 8, 'vision_cfg': vision_cfg, 'text_cfg': {}})


def test_a_resnet_s_native_size_is_a_multiple_of_its_stride():
    vision_cfg = {'layers': [1, 1, 1, 1], 'width': 8, 'image_size': 100}
    with pytest.raises(ValueError, match='image_size of a ResNet must be a multiple of 32, got 100'):
        build_vision_tower({'embed_dim': 8, 'vision_cfg': vision_cfg, 'text_cfg': {}})


@pytest.fixture
def shallow(monkeypatch) -> None:
    """timm's models with one layer, or one block a stage."""
    create = timm.create_model

    def create_shallow(name: str, **kwargs: object) -> nn.Module:
        depth = {'depths': (1, 1, 1, 1)} if name.startswith('convnext') else {'depth': 1}
        return create(name, **depth, **kwargs)

    monkeypatch.setattr(timm, 'create_model', create_shallow)


def test_every_name_of_open_clip_builds_or_is_refused(shallow):
    outcomes = {}
    for name in list_models():
        config = resolve_arch(name)
        if 'layers' in config['vision_cfg']:
            config['vision_cfg']['layers'] = 1 if isinstance(config['vision_cfg']['layers'], int) else [1, 1, 1, 1]
        try:
            with torch.device('meta'):
                tower = build_vision_tower(config)
            assert tower.embed_dim == config['embed_dim']
            assert tower.image_size == (config['vision_cfg']['image_size'],) * 2
            outcomes[name] = type(tower).__name__
        except ValueError as error:
            assert re.search(r'no dense path is defined for .*, wh.*; use EVA02-CLIP-B-16, a ViT', str(error))
            outcomes[name] = 'refused'
    assert set(outcomes.values()) == {'refused', *FAMILY_NAMES}
    assert {name for name, outcome in outcomes.items() if outcome == 'refused'} == {
        name for name in outcomes if name.startswith(REFUSED)
    }


@pytest.mark.parametrize(('name', 'native', 'patch', 'bias'), [
    ('ViT-B-16-SigLIP2-512', 512, 16, -10),
    ('ViT-SO400M-14-SigLIP2-378', 378, 14, -10),
    ('RN50x4-quickgelu', 288, 32, None),
    ('convnext_large_d_320', 320, 32, None),
    ('ViT-L-14-CLIPA-336', 336, 14, None),
])  # fmt: skip
def test_other_families_by_name(name, native, patch, bias):
    """The whole model has open_clip's names and shapes, and any image size runs."""
    with torch.device('meta'):
        ours = VLM(name)
        config = get_model_config(name)
        theirs = (CustomTextCLIP if config.pop('custom_text', False) else CLIP)(**config)
        dense = ours.encode_dense(torch.empty(1, 3, 512, 384))
    expected = {key: value.shape for key, value in rename_keys(theirs.state_dict(), ours).items()}
    assert {key: value.shape for key, value in ours.state_dict().items()} == expected
    assert (ours.visual.image_size, ours.visual.patch_size) == ((native, native), (patch, patch))
    assert (ours.logit_bias is not None) == (bias is not None)
    assert dense.shape == (1, ours.embed_dim, 512 // patch, 384 // patch)


def test_a_timm_vit_takes_the_image_size_of_its_config():
    vision_cfg = {'timm_model_name': 'test_vit', 'timm_pool': 'map', 'timm_proj': 'none', 'image_size': 64}
    tower = build_vision_tower({'embed_dim': 64, 'vision_cfg': vision_cfg, 'text_cfg': {}})
    assert tower.image_size == (64, 64)
    assert tower.trunk.pos_embed.shape == (1, 1 + 16, 64)
    assert tower.encode_image(torch.randn(1, 3, 64, 64)).shape == (1, 64)


@pytest.mark.parametrize('family', ['eva', 'openai'])
def test_a_stored_config_may_describe_itself(parity_dir, family):
    stored = json.loads((parity_dir / f'{family}_tiny.json').read_text())
    assert {'kind', 'keys'} <= set(stored)
    assert load_vlm(stored).embed_dim == stored['embed_dim']
