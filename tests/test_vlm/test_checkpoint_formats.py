"""From one format to another and back: names change, bits do not."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import open_clip
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from open_clip.model import CLIP, CustomTextCLIP
from safetensors.torch import save_file
from timm.models import register_model
from timm.models.eva import Eva, _create_eva
from torch import Tensor

from densevlm_mm import __version__
from densevlm_mm.vlm import (
    VLM,
    CheckpointError,
    convert_checkpoint,
    load_vlm,
    publish_checkpoint,
    read_meta,
    read_state_dict,
)
from densevlm_mm.vlm.architectures import resolve_arch
from densevlm_mm.vlm.checkpoint_formats import _open_clip_names
from densevlm_mm.vlm.digest import sha256

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
TEXT = {'context_length': 9, 'vocab_size': 20, 'width': 16, 'heads': 2, 'layers': 1}
# the smallest of each kind that open_clip can make from a mapping
OPEN_CLIP_ARCHS = {
    'vit': {
        'embed_dim': 8,
        'vision_cfg': {'image_size': 16, 'patch_size': 8, 'width': 16, 'head_width': 8, 'layers': 2},
        'text_cfg': TEXT,
    },
    'resnet': {
        'embed_dim': 8,
        'vision_cfg': {'image_size': 64, 'width': 8, 'head_width': 8, 'layers': [1, 1, 1, 1]},
        'text_cfg': TEXT,
    },
}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Equal in names, dtypes, shapes and every bit."""
    return set(a) == set(b) and all(
        a[key].dtype == b[key].dtype
        and a[key].shape == b[key].shape
        and a[key].reshape(-1).view(torch.uint8).equal(b[key].reshape(-1).view(torch.uint8))
        for key in a
    )


def scrambled(state: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Random weights of random floating dtypes, NaN among them; but rotary tables in their place."""
    generator = torch.Generator().manual_seed(seed)

    def scramble(value: Tensor) -> Tensor:
        if not value.is_floating_point():
            return value.clone()
        dtype = DTYPES[int(torch.randint(len(DTYPES), (), generator=generator))]
        values = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        values.reshape(-1)[:1] = float('nan') if torch.rand((), generator=generator) < 0.1 else 1.0
        return values.to(dtype)

    scrambled = {key: scramble(value) for key, value in state.items()}
    tables = {key: value.to(scrambled['visual.pos_embed'].dtype) for key, value in state.items() if '.rope.' in key}
    return scrambled | tables


@pytest.fixture(scope='module')
def arch_of(word_arch) -> Callable[[str], dict]:
    return lambda family: word_arch if family == 'eva' else OPEN_CLIP_ARCHS[family]


@pytest.fixture(scope='module')
def example(arch_of, tmp_path_factory) -> Callable[[str, str], dict[str, Tensor]]:
    """A state dict of a family in a format."""

    @cache
    def make(family: str, to: str) -> dict[str, Tensor]:
        folder = tmp_path_factory.mktemp('example')
        torch.save(VLM(arch_of(family)).state_dict(), folder / 'source.pt')
        convert_checkpoint(folder / 'source.pt', folder / 'target.pt', arch_of(family), to=to)
        return read_state_dict(folder / 'target.pt')

    return make


# --- laws -------------------------------------------------------------------------------------------------------------

LAW = settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
families = st.sampled_from(['eva', *OPEN_CLIP_ARCHS])
suffixes = st.sampled_from(['.pth', '.safetensors'])
containers = st.sampled_from([None, 'state_dict', 'model', 'module'])


@LAW
@given(family=families, to=st.sampled_from(['open_clip', 'reference']), suffix=suffixes, seed=st.integers(0, 99))
def test_ours_to_theirs_and_back_is_exact(tmp_path, arch_of, example, family, to, suffix, seed):
    arch, state = arch_of(family), scrambled(example(family, 'ours'), seed)
    torch.save({'state_dict': state}, tmp_path / 'ours.pth')
    theirs = tmp_path / ('theirs' + ('.pt' if to == 'reference' else suffix))
    convert_checkpoint(tmp_path / 'ours.pth', theirs, arch, to=to)
    convert_checkpoint(theirs, tmp_path / f'back{suffix}', arch)
    assert same(read_state_dict(tmp_path / f'back{suffix}'), state)


@LAW
@given(family=families, to=st.sampled_from(['open_clip', 'reference']), container=containers, suffix=suffixes,
       prefix=st.sampled_from(['', 'module.']), seed=st.integers(0, 99))  # fmt: skip
def test_theirs_to_ours_and_back_is_exact(tmp_path, arch_of, example, family, to, container, suffix, prefix, seed):
    arch, state = arch_of(family), scrambled(example(family, to), seed)
    prefixed = {prefix + key: value for key, value in state.items()}
    torch.save({container: prefixed} if container else prefixed, tmp_path / 'theirs.pt')
    convert_checkpoint(tmp_path / 'theirs.pt', tmp_path / f'ours{suffix}', arch)
    convert_checkpoint(tmp_path / f'ours{suffix}', tmp_path / 'back.pt', to=to)  # it knows its arch by now
    assert same(read_state_dict(tmp_path / 'back.pt'), state)


@pytest.mark.parametrize('to', ['ours', 'open_clip', 'reference'])
def test_the_same_input_gives_the_same_file(tmp_path, word_vlm, word_arch, to):
    torch.save(word_vlm.state_dict(), tmp_path / 'source.pt')
    for name in 'ab':
        convert_checkpoint(tmp_path / 'source.pt', tmp_path / f'{name}.pt', word_arch, to=to)
    assert (tmp_path / 'a.pt').read_bytes() == (tmp_path / 'b.pt').read_bytes()


# --- the reference's format -------------------------------------------------------------------------------------------


@pytest.mark.parity
def test_the_reference_s_files_come_out_as_they_were(tmp_path, family, tiny_arch, parity_dir):
    original = parity_dir / f'{family}_tiny.pt'
    convert_checkpoint(original, tmp_path / 'ours.pth', tiny_arch(family))
    convert_checkpoint(tmp_path / 'ours.pth', tmp_path / 'theirs.pt', to='reference')
    theirs, expected = (torch.load(path, weights_only=True) for path in (tmp_path / 'theirs.pt', original))
    shapes = json.loads((parity_dir / f'{family}_tiny.json').read_text(encoding='utf-8'))['keys']
    assert {key: list(value.shape) for key, value in theirs['state_dict'].items()} == shapes
    assert same(theirs.pop('state_dict'), expected.pop('state_dict'))  # the rotary buffers, too: as fp16
    assert theirs == {'epoch': 6, 'name': f'{family}_tiny'} == expected


@pytest.mark.parity
def test_rotary_buffers_are_made_in_full_precision(tmp_path, tiny_vlm, tiny_arch, read_npz, parity_dir):
    torch.save(tiny_vlm('eva').state_dict(), tmp_path / 'ours.pth')
    convert_checkpoint(tmp_path / 'ours.pth', tmp_path / 'theirs.pt', tiny_arch('eva'), to='reference')
    theirs, rounded = read_state_dict(tmp_path / 'theirs.pt'), read_state_dict(parity_dir / 'eva_tiny.pt')
    buffers = [key for key in theirs if 'rope.' in key]
    assert len(buffers) == 2 * 5
    for key in buffers:
        assert theirs[key].dtype == torch.float32
        assert not torch.equal(theirs[key], theirs[key].half().float())
        assert torch.equal(theirs[key].half(), rounded[key])


@pytest.mark.parametrize(('arch', 'count', 'buffers'), [
    ('EVA02-CLIP-B-16', 436, {(196, 64): 26}),
    ('EVA02-CLIP-L-14-336', 712, {(576, 64): 50}),
])  # fmt: skip
def test_the_released_sizes_have_the_released_keys(tmp_path, arch, count, buffers):
    """One number for all weights keeps the files small."""
    with torch.device('meta'):
        shapes = {key: value.shape for key, value in VLM(arch).state_dict().items()}
    torch.save({key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}, tmp_path / 'ours.pth')
    names = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('densevlm_mm.vlm.checkpoint_formats._cast', lambda name, value, dtype: value)
        patch.setattr('densevlm_mm.vlm.checkpoint_formats._write', lambda target, state, meta, to: names.update(state))
        convert_checkpoint(tmp_path / 'ours.pth', tmp_path / 'theirs.pt', arch, to='reference')
    assert len(names) == count
    for shape, number in buffers.items():
        assert sum(tuple(value.shape) == shape for key, value in names.items() if 'rope.freqs_' in key) == number
    assert {'visual.blocks.3.attn.q_bias', 'visual.blocks.3.mlp.w3.weight', 'visual.norm.bias'} <= set(names)


def test_the_reference_has_no_oblong_eva_towers(tmp_path, word_arch):
    arch = {**word_arch, 'vision_cfg': {**word_arch['vision_cfg'], 'image_size': [16, 32]}}
    torch.save(VLM(arch).state_dict(), tmp_path / 'ours.pth')
    with pytest.raises(ValueError, match=r'square grids, not \(2, 4\)'):
        convert_checkpoint(tmp_path / 'ours.pth', tmp_path / 'theirs.pt', arch, to='reference')
    assert [path.name for path in tmp_path.iterdir()] == ['ours.pth']


# --- open_clip's format -----------------------------------------------------------------------------------------------


@register_model
def eva02_tiny_words(pretrained: bool = False, **kwargs: object) -> Eva:
    """The tower of the `word_arch` fixture, as timm would name it; timm's own tables serve its native grid."""
    sizes = dict(img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2.6667)
    parts = dict(qkv_fused=False, swiglu_mlp=True, scale_mlp=True, scale_attn_inner=True, use_rot_pos_emb=True)
    parts |= dict(ref_feat_shape=(2, 2), global_pool='token')
    return _create_eva('eva02_tiny_words', pretrained=pretrained, **{**sizes, **parts, **kwargs})


def open_clip_config(arch: dict, custom_text: bool) -> dict:
    if 'eva_model_name' not in arch['vision_cfg']:
        return {**arch, 'custom_text': custom_text}
    vision = {'timm_model_name': 'eva02_tiny_words', 'timm_pool': 'token', 'timm_proj': None, 'image_size': 16}
    text = {key: value for key, value in arch['text_cfg'].items() if key != 'words'}
    vocabulary = {'vocab_size': len(arch['text_cfg']['words']) + 3}
    return {'embed_dim': arch['embed_dim'], 'vision_cfg': vision, 'text_cfg': text | vocabulary, 'custom_text': True}


@pytest.fixture
def open_clip_models(monkeypatch):
    """Models that a test adds to open_clip's go with it; other tests ask for the list."""
    monkeypatch.setattr('open_clip.factory._MODEL_CONFIG_PATHS', list(open_clip.factory._MODEL_CONFIG_PATHS))
    monkeypatch.setattr('open_clip.factory._MODEL_CONFIGS', dict(open_clip.factory._MODEL_CONFIGS))


@pytest.mark.usefixtures('open_clip_models')
@pytest.mark.parametrize('suffix', ['.pt', '.safetensors'])
@pytest.mark.parametrize('family', ['eva', *OPEN_CLIP_ARCHS])
@pytest.mark.parametrize('custom_text', [False, True])
@pytest.mark.parametrize('dtype', [None, 'float16'])
def test_open_clip_loads_it(tmp_path, arch_of, suffix, family, custom_text, dtype):
    arch = arch_of(family) | {'custom_text': custom_text, 'quick_gelu': False}
    ours = load_vlm(arch)
    torch.save({'state_dict': ours.state_dict()}, tmp_path / 'ours.pth')
    convert_checkpoint(tmp_path / 'ours.pth', tmp_path / f'theirs{suffix}', arch, to='open_clip', dtype=dtype)
    (tmp_path / f'tiny-{family}.json').write_text(json.dumps(open_clip_config(arch, custom_text)))
    open_clip.add_model_config(tmp_path / f'tiny-{family}.json')
    theirs = open_clip.create_model(f'tiny-{family}', pretrained=str(tmp_path / f'theirs{suffix}')).eval()
    ours = load_vlm(arch, tmp_path / f'theirs{suffix}')
    side = ours.visual.image_size[0]
    images, tokens = torch.randn(2, 3, side, side), torch.randint(1, 14, (3, arch['text_cfg']['context_length']))
    with torch.no_grad():
        torch.testing.assert_close(ours.encode_image(images), theirs.encode_image(images, normalize=True))
        torch.testing.assert_close(ours.encode_text(tokens), theirs.encode_text(tokens, normalize=True))


@pytest.mark.parametrize('suffix', ['.pt', '.safetensors'])
@pytest.mark.parametrize('kind', [CLIP, CustomTextCLIP])
def test_open_clip_s_own_files_come_out_as_they_were(tmp_path, suffix, kind):
    arch = OPEN_CLIP_ARCHS['vit'] | {'custom_text': kind is CustomTextCLIP}
    state = kind(**OPEN_CLIP_ARCHS['vit']).state_dict()
    (save_file if suffix == '.safetensors' else torch.save)(state, tmp_path / f'theirs{suffix}')
    convert_checkpoint(tmp_path / f'theirs{suffix}', tmp_path / 'ours.pth', arch)
    convert_checkpoint(tmp_path / 'ours.pth', tmp_path / f'back{suffix}', to='open_clip')
    assert same(read_state_dict(tmp_path / f'back{suffix}'), state)


@pytest.mark.parametrize('name', [
    'ViT-B-32', 'ViT-B-16-SigLIP', 'RN50-quickgelu', 'convnext_base_w', 'EVA02-B-16',
])  # fmt: skip
def test_every_tensor_has_one_name_in_open_clip(name):
    config = resolve_arch(name)
    with torch.device('meta'):
        vlm, theirs = VLM(config), open_clip.create_model(name, device='meta')
    names, shapes = _open_clip_names(vlm, config), {key: v.shape for key, v in theirs.state_dict().items()}
    assert {names[key]: value.shape for key, value in vlm.state_dict().items()} == shapes


# --- our format -------------------------------------------------------------------------------------------------------


@pytest.fixture
def training(tmp_path, word_vlm) -> Path:
    """A training checkpoint of a distiller, as a runner leaves it."""
    word_vlm.requires_grad_(False)
    state = {f'vlm.{key}': value for key, value in word_vlm.state_dict().items()} | {'loss.prior': torch.ones(3)}
    meta = {'epoch': 2, 'iter': 40, 'cfg': 'data_root = "private"', 'dataset_meta': {'classes': ['a']}}
    meta['vlm'] = {'dense_mode': 'csa', 'method': 'DenseVLM', 'version': '0'}
    content = {'meta': meta, 'state_dict': state, 'optimizer': {'state': {}}, 'raw_trainable': state, 'message_hub': {}}
    torch.save(content, tmp_path / 'iter_40.pth')
    return tmp_path / 'iter_40.pth'


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_meta_says_what_the_model_is(tmp_path, training, word_arch, word_vlm, suffix):
    convert_checkpoint(training, tmp_path / f'ours{suffix}', word_arch)
    known = {'dense_mode': 'csa', 'method': 'DenseVLM', 'version': __version__}
    assert read_meta(tmp_path / f'ours{suffix}') == {'arch': word_arch, **known}
    vlm = load_vlm(read_meta(tmp_path / f'ours{suffix}')['arch'], tmp_path / f'ours{suffix}')
    assert vlm.dense_mode == 'csa'
    assert same(vlm.state_dict(), word_vlm.state_dict())


def test_the_arch_may_be_a_file(tmp_path, training, word_arch):
    (tmp_path / 'arch.json').write_text(json.dumps(word_arch))
    convert_checkpoint(training, tmp_path / 'ours.pth', str(tmp_path / 'arch.json'))
    assert read_meta(tmp_path / 'ours.pth')['arch'] == word_arch


@pytest.mark.parametrize(('dtype', 'expected'), [(None, {torch.float32}), ('float16', {torch.float16})])
def test_dtype(tmp_path, training, word_arch, word_vlm, dtype, expected):
    convert_checkpoint(training, tmp_path / 'ours.pth', word_arch, dtype=dtype)
    state = read_state_dict(tmp_path / 'ours.pth')
    assert {value.dtype for value in state.values()} == expected
    (wanted,) = expected
    assert same(state, {key: value.to(wanted) for key, value in word_vlm.state_dict().items()})


def test_counters_keep_their_dtype(tmp_path):
    torch.save(VLM(OPEN_CLIP_ARCHS['resnet']).state_dict(), tmp_path / 'resnet.pt')
    convert_checkpoint(tmp_path / 'resnet.pt', tmp_path / 'ours.pth', OPEN_CLIP_ARCHS['resnet'], dtype='float16')
    dtypes = {value.dtype for value in read_state_dict(tmp_path / 'ours.pth').values()}
    assert dtypes == {torch.float16, torch.int64}


def test_published_is_what_others_need(tmp_path, training, word_arch, word_vlm):
    written = publish_checkpoint(training, tmp_path / 'out' / 'densevlm.pth', word_arch)
    assert [path.name for path in (tmp_path / 'out').iterdir()] == [f'densevlm-{sha256(written.path)[:8]}.pth']
    content = torch.load(written.path, weights_only=True)
    assert set(content) == {'meta', 'state_dict'}
    assert set(content['meta']) == {'epoch', 'iter', 'vlm'}
    assert same(content['state_dict'], word_vlm.state_dict())
    expected = {'optimizer', 'raw_trainable', 'message_hub', 'loss.prior', 'meta.cfg', 'meta.dataset_meta'}
    assert set(written.dropped) == expected
    again = publish_checkpoint(written.path, tmp_path / 'again.pth')
    assert again.path.stem.rpartition('-')[2] == written.path.stem.rpartition('-')[2]
    assert again.dropped == ()


def test_views_are_written_compact(tmp_path, word_arch, word_vlm):
    storage = torch.zeros(100_000)
    state = {key: storage[: value.numel()].view(value.shape) for key, value in word_vlm.state_dict().items()}
    torch.save(state, tmp_path / 'views.pth')
    written = publish_checkpoint(tmp_path / 'views.pth', tmp_path / 'compact.pth', word_arch)
    assert written.path.stat().st_size < 200_000


# --- refusals ---------------------------------------------------------------------------------------------------------


class Attack:
    def __reduce__(self):
        return os.system, ('true',)


def break_source(kind: str, source: Path, vlm: VLM) -> None:
    state = vlm.state_dict()
    if kind == 'missing key':
        state.pop('text.text_projection')
    elif kind == 'unknown key':
        state['visual.blocks.0.mlp.w1.gate'] = torch.ones(1)
    elif kind == 'detector':
        state = {f'backbone.{key}': value for key, value in state.items()}
    elif kind == 'other family':
        state = VLM(OPEN_CLIP_ARCHS['vit']).state_dict()
    torch.save({'state_dict': state, **({'meta': Attack()} if kind == 'code' else {})}, source)
    if kind == 'truncated':
        source.write_bytes(source.read_bytes()[:-500])


@pytest.mark.parametrize('to', ['ours', 'open_clip', 'reference'])
@pytest.mark.parametrize(('kind', 'message'), [
    ('missing key', '1 missing:\n    text.text_projection'),
    ('unknown key', '1 unexpected:\n    visual.blocks.0.mlp.w1.gate'),
    ('detector', 'the file of a whole detector or segmentor'),
    ('other family', 'unexpected:\n(.|\n)*visual.trunk.transformer.resblocks'),
    ('code', 'refused: reading it would run'),
    ('truncated', 'damaged'),
])  # fmt: skip
def test_bad_input_leaves_nothing_behind(tmp_path, word_arch, word_vlm, to, kind, message):
    source, target = tmp_path / 'source.pth', tmp_path / 'target.pt'
    break_source(kind, source, word_vlm)
    target.write_bytes(b'what was there')
    for make in (lambda: convert_checkpoint(source, target, word_arch, to=to),
                 lambda: publish_checkpoint(source, target, word_arch)):  # fmt: skip
        with pytest.raises(CheckpointError, match=message):
            make()
    assert sorted(path.name for path in tmp_path.iterdir()) == ['source.pth', 'target.pt']
    assert target.read_bytes() == b'what was there'


@pytest.mark.parametrize('link', [None, Path.symlink_to, Path.hardlink_to])
def test_the_source_is_not_overwritten(training, word_arch, link):
    target = training if link is None else training.with_name('link.pth')
    if link is not None:
        link(target, training)
    before = training.read_bytes()
    for make in (convert_checkpoint, publish_checkpoint):
        with pytest.raises(ValueError, match='is the source itself; it is not overwritten'):
            make(training, target, word_arch)
    assert training.read_bytes() == before


@pytest.mark.parametrize(('target', 'options', 'message'), [
    ('a.pth', {'arch': None}, 'iter_40.pth does not say what model it is of: give its arch'),
    ('a.pth', {'arch': 'ViT-Z'}, "unknown arch 'ViT-Z'"),
    ('a.pth', {'to': 'onnx'}, "unknown format 'onnx'; known: "),
    ('a.pth', {'dtype': 'int8'}, 'no floating dtype'),
    ('a.bin', {}, r"a.bin must end in one of \('.pth', '.pt', '.safetensors'\)"),
    ('a.safetensors', {'to': 'reference'}, r"a.safetensors must end in one of \('.pth', '.pt'\)"),
])  # fmt: skip
def test_bad_requests(tmp_path, training, word_arch, target, options, message):
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(training, tmp_path / target, **{'arch': word_arch, **options})
    assert [path.name for path in tmp_path.iterdir()] == ['iter_40.pth']


def test_no_reference_format_for_a_text_tower_of_its_own(tmp_path):
    arch = OPEN_CLIP_ARCHS['vit'] | {'custom_text': True}
    torch.save(VLM(arch).state_dict(), tmp_path / 'ours.pth')
    with pytest.raises(ValueError, match='text tower at the root'):
        convert_checkpoint(tmp_path / 'ours.pth', tmp_path / 'theirs.pt', arch, to='reference')


def test_values_that_a_dtype_cannot_hold(tmp_path, word_arch, word_vlm):
    torch.save(word_vlm.state_dict() | {'logit_scale': torch.tensor(1e6)}, tmp_path / 'source.pt')
    with pytest.raises(CheckpointError, match='logit_scale holds values beyond torch.float16, up to 1e'):
        convert_checkpoint(tmp_path / 'source.pt', tmp_path / 'half.pth', word_arch, dtype='float16')
    assert not (tmp_path / 'half.pth').exists()


def test_what_does_not_read_back_is_not_kept(tmp_path, training, word_arch, monkeypatch):
    save = torch.save

    def save_wrongly(content: dict, file: object) -> None:
        scale = content['state_dict']['logit_scale']
        save({**content, 'state_dict': {**content['state_dict'], 'logit_scale': scale + 1}}, file)

    monkeypatch.setattr(torch, 'save', save_wrongly)
    with pytest.raises(CheckpointError, match=r"does not read back as it was written, and is not kept: \['logit_scale"):
        convert_checkpoint(training, tmp_path / 'ours.pth', word_arch)
    assert [path.name for path in tmp_path.iterdir()] == ['iter_40.pth']
