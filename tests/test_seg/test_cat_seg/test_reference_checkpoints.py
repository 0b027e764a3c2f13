"""Released CAT-Seg checkpoints: ours renamed into the described names by a table of its own, converted back."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmengine.registry import DefaultScope
from torch import Tensor

from densevlm_mm.seg import CATSeg, CATSegAggregator, convert_catseg_checkpoint
from densevlm_mm.seg.cat_seg.reference_checkpoints import fit_to_segmentor
from densevlm_mm.vlm import CheckpointError, load_vlm
from densevlm_mm.vlm.checkpoints import Checkpoint, read_content

from .conftest import OPTIONS

CLIP = 'sem_seg_head.predictor.clip_model.'
AGGREGATOR = 'sem_seg_head.predictor.transformer.'
# our names -> the described ones; every pattern that is found is replaced
COMMON = {
    r'^upsamplers\.0\.': 'upsample1.',
    r'^upsamplers\.1\.': 'upsample2.',
    r'^aggregator\.': AGGREGATOR,
    r'\.spatial\.blocks\.0\.': '.swin_block.block_1.',
    r'\.spatial\.blocks\.1\.': '.swin_block.block_2.',
    r'\.spatial\.': '.swin_block.',
    r'\.classes\.attn\.': '.attention.attention.',
    r'\.classes\.mlp\.fc1\.': '.attention.MLP.0.',
    r'\.classes\.mlp\.fc2\.': '.attention.MLP.2.',
    r'\.classes\.': '.attention.',
    r'\.embedding\.': '.conv1.',
    r'\.appearance_projection\.': '.guidance_projection.',
    r'\.text_projection\.0': '.text_guidance_projection.0',
    r'\.guidance_projections\.': '.decoder_guidance_projection.',
    r'\.decoder\.head\.': '.head.',
    r'\.decoder\.ups\.0\.': '.decoder1.',
    r'\.decoder\.ups\.1\.': '.decoder2.',
    r'(decoder\d\.)conv1\.': r'\1conv.double_conv.0.',
    r'(decoder\d\.)norm1\.': r'\1conv.double_conv.1.',
    r'(decoder\d\.)conv2\.': r'\1conv.double_conv.3.',
    r'(decoder\d\.)norm2\.': r'\1conv.double_conv.4.',
}
EVA = {
    r'^vlm\.visual\.trunk\.': f'{CLIP}visual.',
    r'^vlm\.': CLIP,
    r'\.attn\.q_proj\.bias$': '.attn.q_bias',
    r'\.attn\.v_proj\.bias$': '.attn.v_bias',
    r'(visual.*\.attn)\.norm\.': r'\1.inner_attn_ln.',
    r'\.mlp\.fc1_g\.': '.mlp.w1.',
    r'\.mlp\.fc1_x\.': '.mlp.w2.',
    r'(visual.*\.mlp)\.norm\.': r'\1.ffn_ln.',
    r'(visual.*\.mlp)\.fc2\.': r'\1.w3.',
}
OPENAI = {r'^vlm\.visual\.trunk\.': f'{CLIP}visual.', r'^vlm\.text\.': CLIP, r'^vlm\.': CLIP}


def renamed(name: str, table: dict[str, str]) -> str:
    for ours, theirs in table.items():
        name = re.sub(ours, theirs, name)
    return name


def masks(segmentor: CATSeg) -> dict[str, Tensor]:
    layers = range(len(segmentor.aggregator.layers))
    return {f'{AGGREGATOR}layers.{i}.swin_block.block_2.attn_mask': torch.zeros(4, 16, 16) for i in layers}


def apart(state: dict[str, Tensor], joint: str) -> dict[str, Tensor]:
    """OpenAI's fused projections as the released code keeps them."""
    split = {}
    for key, value in state.items():
        found = re.fullmatch(r'(.*\.attn\.)in_proj_(weight|bias)', key)
        if found:
            parts = zip('qkv', value.chunk(3), strict=True)
            split |= {f'{found[1]}{letter}_proj{joint}{found[2]}': part for letter, part in parts}
        else:
            split[key] = value
    return split


def released_eva(segmentor: CATSeg) -> dict[str, Tensor]:
    """What DeCLIP's code would have saved: EVA-CLIP's names, with rotary buffers, and a fused text tower."""
    state = {renamed(name, {**EVA, **COMMON}): value.clone() for name, value in segmentor.state_dict().items()}
    owners = ['visual', *(f'visual.blocks.{i}.attn' for i in range(2))]
    ropes = {f'{CLIP}{owner}.rope.freqs_{part}': torch.randn(16, 16) for owner in owners for part in ('cos', 'sin')}
    return state | ropes | masks(segmentor)


def released_openai(segmentor: CATSeg, joint: str = '.') -> dict[str, Tensor]:
    """What CAT-Seg's code would have saved: OpenAI's names, with queries, keys and values apart."""
    state = {renamed(name, {**OPENAI, **COMMON}): value.clone() for name, value in segmentor.state_dict().items()}
    return apart(state, joint) | masks(segmentor)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Equal in names, dtypes, shapes and values."""
    return set(a) == set(b) and all(a[key].dtype == b[key].dtype and torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope='module')
def segmentors(build, openai_clip) -> dict[str, CATSeg]:
    """A segmentor on either CLIP, where no two numbers are alike."""
    with DefaultScope.overwrite_default_scope('mmseg'):
        found = {'eva': build(), 'openai': build(vlm=openai_clip)}
    for segmentor in found.values():
        for head in (segmentor.aggregator, segmentor.upsamplers):
            for value in head.state_dict().values():
                value.add_(torch.rand_like(value) * 0.01)
    return found


@pytest.fixture(scope='module')
def released(segmentors) -> dict[str, Tensor]:
    return released_openai(segmentors['openai'])


@pytest.fixture
def write(tmp_path) -> Callable[..., Path]:
    """Writes a checkpoint as detectron2 does."""

    def make(state: dict[str, Tensor], name: str = 'released.pth') -> Path:
        torch.save({'model': state, 'optimizer': {}, 'scheduler': {}, 'iteration': 79999}, tmp_path / name)
        return tmp_path / name

    return make


def config(clip: dict[str, Any]) -> dict[str, Any]:
    return {**OPTIONS, 'vlm': {**clip, 'checkpoint': 'checkpoints/gone.pt'}}


@pytest.mark.parametrize('make', [released_eva, released_openai, lambda model: released_openai(model, '_')])
def test_there_and_back(segmentors, write, clip, openai_clip, tmp_path, make):
    kind = 'eva' if make is released_eva else 'openai'
    model, source, target = segmentors[kind], write(make(segmentors[kind])), tmp_path / 'ours.pth'
    written = convert_catseg_checkpoint(source, target, config(clip if kind == 'eva' else openai_clip))
    content = read_content(target)
    assert same(content['state_dict'], model.state_dict())
    assert content['meta']['iteration'] == 79999
    assert content['meta']['dataset_meta'] == model.dataset_meta
    assert content['meta']['vlm']['dense_mode'] == 'value'
    assert written.tensors == len(model.state_dict())
    assert {'optimizer', 'scheduler'} <= set(written.dropped)
    computed = {key for key in make(model) if 'attn_mask' in key or 'rope' in key}
    assert computed <= set(written.dropped)
    # its CLIP can be used alone
    inputs = torch.randn(1, 3, 32, 32)
    alone = load_vlm((clip if kind == 'eva' else openai_clip)['arch'], target)
    torch.testing.assert_close(alone.encode_dense(inputs), model.vlm.encode_dense(inputs))


def test_the_names_of_the_aggregator_are_those_of_the_parity_data(data_dir):
    """The table here is made of the same description as the one that is tested; this one is not."""
    state = torch.load(data_dir / 'parity' / 'catseg_aggregator.pt', weights_only=True)
    options = {'guidance_dims': (20, 12), 'hidden_dim': 32, 'window': 4, 'pad_len': 10, 'decoder_dims': (32, 16)}
    projected = {'appearance_dim': 16, 'text_dim': 16, 'guidance_proj_dims': (8, 4)}
    ours = CATSegAggregator(24, **options, **projected).state_dict()
    names = {renamed(f'aggregator.{name}', COMMON).removeprefix(AGGREGATOR) for name in ours}
    assert names == {key for key in state if not key.endswith('attn_mask')}


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_nothing_is_lost_or_made_up(segmentors, released, data):
    """A tensor that is away, renamed or of another shape is named in the error."""
    used = [key for key in released if 'attn_mask' not in key]
    key, fault = data.draw(st.sampled_from(used)), data.draw(st.sampled_from(['away', 'renamed', 'shape']))
    state = dict(released)
    value = state.pop(key)
    if fault == 'renamed':
        state[f'{key}_other'] = value
    if fault == 'shape':
        state[key] = torch.zeros(*value.shape, 2)
    title = {'away': '(missing|no whole)', 'renamed': 'unexpected', 'shape': '(another shape|no whole)'}[fault]
    with pytest.raises(CheckpointError, match=title):
        fit_to_segmentor(Checkpoint(Path('file.pth'), state, {}), segmentors['openai'])


def test_what_is_there_twice_is_refused(segmentors, released):
    model = segmentors['openai']
    key = next(key for key in released if key.endswith('attn.q_proj.weight'))
    for other in (key.replace('q_proj.weight', 'q_proj_weight'), key.replace('q_proj.weight', 'in_proj_weight')):
        state = {**released, other: released[key]}
        with pytest.raises(CheckpointError, match=re.escape(other)):
            fit_to_segmentor(Checkpoint(Path('file.pth'), state, {}), model)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'type': 'EncoderDecoder'}, 'EncoderDecoder'),
        ({'guidance_blocks': (0,)}, 'not as many'),
        ({'templates': ['{}', 'a {}']}, 'conv1.weight'),
    ],
)
def test_configs_that_do_not_fit(released, write, openai_clip, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        convert_catseg_checkpoint(write(released), tmp_path / 'ours.pth', {**config(openai_clip), **change})
    assert not (tmp_path / 'ours.pth').exists()


def test_targets_are_checked_first(released, write, openai_clip, tmp_path):
    source = write(released)
    for target, message in ((tmp_path / 'ours.zip', 'end in'), (source, 'the source itself')):
        with pytest.raises(ValueError, match=message):
            convert_catseg_checkpoint(source, target, config(openai_clip))
    with pytest.raises(FileNotFoundError):
        convert_catseg_checkpoint(tmp_path / 'gone.pth', tmp_path / 'ours.pth', config(openai_clip))
