"""What a file is, read off its tensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

import open_clip
import pytest
import torch
from open_clip.model import CLIP, CustomTextCLIP
from safetensors.torch import save_file

from densevlm_mm.vlm import VLM, CheckpointError, convert_checkpoint, describe_checkpoint
from densevlm_mm.vlm.describe import format_description, matching_archs
from densevlm_mm.vlm.tower_sizes import text_sizes, vision_sizes


@pytest.fixture(scope='module')
def shapes_of() -> Callable[[str], dict[str, tuple]]:
    """Shapes of open_clip's models, by name."""

    def read(name: str) -> dict[str, tuple]:
        config = open_clip.get_model_config(name)
        kind = CustomTextCLIP if config.pop('custom_text', False) else CLIP
        with torch.device('meta'):
            return {key: tuple(value.shape) for key, value in kind(**config).state_dict().items()}

    return read


TEXT = {'context': 77, 'vocab': 49408}
VIT = {'family': 'OpenAI ViT', 'embed_dim': 512, 'width': 768, 'layers': 12, 'patch': 16, 'grid': 14}
EVA = {'family': 'EVA-02', 'embed_dim': 512, 'width': 768, 'layers': 12, 'patch': 16, 'grid': 14}
RESNET = {'family': 'OpenAI ResNet', 'embed_dim': 640, 'width': 80, 'layers': [4, 6, 10, 6], 'patch': 32, 'grid': 9}
SIGLIP = {'family': 'SigLIP', 'embed_dim': 768, 'width': 768, 'layers': 12, 'patch': 16, 'grid': 24}
CONVNEXT = {'family': 'ConvNeXt', 'embed_dim': 640, 'width': 128, 'layers': [3, 3, 27, 3], 'patch': 32}


@pytest.mark.parametrize(('name', 'vision', 'text', 'archs'), [
    ('ViT-B-16', VIT, {**TEXT, 'width': 512, 'layers': 12}, ['ViT-B-16', 'ViT-B-16-quickgelu']),
    ('EVA02-B-16', EVA, {**TEXT, 'width': 512, 'layers': 12}, ['EVA02-CLIP-B-16', 'EVA02-B-16']),
    ('RN50x4', RESNET, {**TEXT, 'width': 640, 'layers': 12}, ['RN50x4', 'RN50x4-quickgelu']),
    ('ViT-B-16-SigLIP-384', SIGLIP, {'context': 64, 'vocab': 32000, 'width': 768, 'layers': 12},
     ['ViT-B-16-SigLIP-384']),
    ('convnext_base_w', CONVNEXT, {**TEXT, 'width': 640, 'layers': 12}, ['convnext_base_w', 'convnext_base_w_320']),
    ('convnext_small', {**CONVNEXT, 'embed_dim': 512, 'width': 96}, {**TEXT, 'width': 512, 'layers': 12},
     ['convnext_small']),
])  # fmt: skip
def test_sizes_and_archs_of_open_clip_s_models(shapes_of, name, vision, text, archs):
    shapes = shapes_of(name)
    found = vision_sizes(shapes), text_sizes(shapes)
    assert found == (vision, {'embed_dim': vision['embed_dim'], **text})
    assert matching_archs(*found) == archs


@pytest.mark.parametrize('name', ['EVA01-g-14', 'PE-Core-T-16-384', 'ViTamin-S', 'MobileCLIP-B'])
def test_what_is_not_known_apart_matches_nothing(shapes_of, name):
    shapes = shapes_of(name)
    assert vision_sizes(shapes).get('family') == 'timm ViT'
    assert matching_archs(vision_sizes(shapes), text_sizes(shapes)) == []


@pytest.mark.parametrize('arch', [
    'EVA02-CLIP-B-16', 'ViT-B-16-quickgelu', 'RN50', 'ViT-B-16-SigLIP', 'convnext_base_w',
])  # fmt: skip
def test_our_own_names_tell_the_same(arch):
    with torch.device('meta'):
        shapes = {key: tuple(value.shape) for key, value in VLM(arch).state_dict().items()}
    assert arch in matching_archs(vision_sizes(shapes), text_sizes(shapes))


@pytest.mark.parametrize('change', [{'width': 640}, {'layers': 11}, {'patch': 32}, {'grid': 24}, {'embed_dim': 640}])
def test_a_size_that_differs_fits_nothing_known(change):
    text = {'embed_dim': 512, **TEXT, 'width': 512, 'layers': 12}
    assert matching_archs(VIT, text) == ['ViT-B-16', 'ViT-B-16-quickgelu']
    assert matching_archs({**VIT, **change}, text) == []


@pytest.mark.parity
def test_a_file_of_the_reference(parity_dir):
    file = parity_dir / 'eva_tiny.pt'
    told = describe_checkpoint(file)
    assert told['sha256'] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert told['bytes'] == file.stat().st_size
    assert (told['format'], told['container'], told['beside']) == ('PyTorch', 'state_dict', [])
    assert told['vision'] == {
        'family': 'EVA-02', 'embed_dim': 48, 'width': 96, 'layers': 4, 'patch': 16, 'grid': 4, 'heads': 3,
    }  # fmt: skip
    assert told['text'] == {'embed_dim': 48, 'width': 64, 'layers': 2, 'context': 16, 'vocab': 600}
    assert told['tensors'] == 132
    assert told['dtypes'] == {'float16': 132}
    assert told['archs'] == []
    assert told['dense_mode'] is told['arch'] is None
    assert told['meta'] == {'epoch': 6, 'name': 'eva_tiny'}


def test_parameters_are_counted_without_buffers(parity_dir, vlm, family):
    told = describe_checkpoint(parity_dir / f'{family}_tiny.pt')
    assert told['parameters'] == sum(parameter.numel() for parameter in vlm.parameters())


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_our_own_file(tmp_path, word_arch, word_vlm, suffix):
    meta = {'epoch': 2, 'vlm': {'dense_mode': 'csa', 'method': 'DenseVLM'}}
    torch.save({'meta': meta, 'state_dict': word_vlm.state_dict(), 'optimizer': {}}, tmp_path / 'trained.pth')
    convert_checkpoint(tmp_path / 'trained.pth', tmp_path / f'ours{suffix}', word_arch, dtype='float16')
    told = describe_checkpoint(tmp_path / f'ours{suffix}')
    assert told['format'] == {'.pth': 'PyTorch', '.safetensors': 'safetensors'}[suffix]
    assert told['container'] == {'.pth': 'state_dict', '.safetensors': None}[suffix]
    assert (told['dense_mode'], told['arch'], told['archs']) == ('csa', word_arch, [])
    assert told['vision']['heads'] == 2
    assert {key: told['meta'][key] for key in ('epoch', 'method')} == {'epoch': 2, 'method': 'DenseVLM'}
    lines = dict(line.split(maxsplit=1) for line in format_description(told).splitlines())
    assert lines['vision'].startswith('family EVA-02, embed_dim 12, width 16')
    assert 'csa' in lines['dense']
    assert 'DenseVLM' in lines['meta']


def test_the_stored_arch_decides_among_those_of_the_same_sizes():
    text = {'embed_dim': 512, **TEXT, 'width': 512, 'layers': 12}
    stored = open_clip.get_model_config('ViT-B-16-quickgelu')
    assert matching_archs(VIT, text, stored) == ['ViT-B-16-quickgelu']


@pytest.mark.parametrize('legacy', [False, True])
def test_a_training_checkpoint_of_a_detector(tmp_path, legacy):
    state = {'backbone.layer1.weight': torch.zeros(2), 'backbone.layer1.bias': torch.zeros(2).half()}
    content = {
        'state_dict': {**state, 'neck.weight': torch.zeros(1)},
        'optimizer': {},
        'meta': {'cfg': 'x', 'epoch': 1},
    }
    torch.save(content, tmp_path / 'epoch_1.pth', _use_new_zipfile_serialization=not legacy)
    told = describe_checkpoint(tmp_path / 'epoch_1.pth')
    assert told['format'] == ('PyTorch before 1.6' if legacy else 'PyTorch')
    assert (told['vision'], told['text'], told['archs']) == ({}, {}, [])
    assert told['parts'] == {'backbone': 2, 'neck': 1}
    assert told['beside'] == ['optimizer']
    assert told['dtypes'] == {'float32': 2, 'float16': 1}
    assert 'no known tower; tensors: backbone 2, neck 1' in format_description(told)
    assert 'cfg' not in format_description(told)


def test_a_description_is_data(parity_dir, tmp_path):
    save_file({'a': torch.zeros(1)}, tmp_path / 'a.safetensors')
    for file in (parity_dir / 'openai_tiny.pt', tmp_path / 'a.safetensors'):
        told = describe_checkpoint(file)
        assert json.loads(json.dumps(told)) == told


@pytest.mark.parametrize('shapes', [
    {'visual.blocks.0.attn.q_proj.weight': ()},
    {'visual.transformer.resblocks.0.ln_1.weight': (4,), 'visual.positional_embedding': (6, 4), 'visual.proj': ()},
    {'visual.layer1.0.conv1.weight': (4, 4), 'visual.attnpool.positional_embedding': (0, 4)},
    {'token_embedding.weight': (4,), 'positional_embedding': (4, 4)},
    {},
])  # fmt: skip
def test_odd_shapes_are_no_error(shapes):
    vision = vision_sizes(shapes)
    assert set(vision) <= {'family', 'layers', 'patch', 'width'}
    assert text_sizes(shapes) == {}
    assert matching_archs(vision, {}) == []


def test_a_file_that_cannot_be_read(tmp_path):
    (tmp_path / 'broken.pth').write_bytes(b'no checkpoint')
    with pytest.raises(CheckpointError, match='broken.pth'):
        describe_checkpoint(tmp_path / 'broken.pth')
    with pytest.raises(FileNotFoundError, match='gone.pth does not exist'):
        describe_checkpoint(tmp_path / 'gone.pth')
