"""tools/model_converters/convert_catseg.py, from a file under the described names to one that a segmentor loads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from densevlm_mm.registry import MODELS
from densevlm_mm.vlm.checkpoints import read_content

TOOL = 'model_converters/convert_catseg'

CONFIG = """
model = dict(
    type='densevlm_mm.CATSeg',
    vlm=dict(arch={arch}, checkpoint='checkpoints/gone.pt'),
    vocabulary=['car', 'tree'],
    aggregator=dict(
        guidance_dims=(20, 12), hidden_dim=32, num_layers=0, appearance_dim=16, text_dim=16, decoder_dims=(32, 16),
        guidance_proj_dims=(8, 4)),
    guidance_blocks=(0, 1),
    templates=['a photo of a {{}}'],
)
"""
AGGREGATOR = 'sem_seg_head.predictor.transformer.'
# our names -> the described ones, in which the tower keeps the names of ours
RELEASED = {
    'vlm.': 'sem_seg_head.predictor.clip_model.',
    'upsamplers.0.': 'upsample1.',
    'upsamplers.1.': 'upsample2.',
    'aggregator.embedding.': f'{AGGREGATOR}conv1.',
    'aggregator.appearance_projection.': f'{AGGREGATOR}guidance_projection.',
    'aggregator.text_projection.': f'{AGGREGATOR}text_guidance_projection.',
    'aggregator.guidance_projections.': f'{AGGREGATOR}decoder_guidance_projection.',
    'aggregator.decoder.head.': f'{AGGREGATOR}head.',
    **{
        f'aggregator.decoder.ups.{step}.{ours}.': f'{AGGREGATOR}decoder{step + 1}.{theirs}.'
        for step in (0, 1)
        for ours, theirs in {
            'up': 'up', 'conv1': 'conv.double_conv.0', 'norm1': 'conv.double_conv.1', 'conv2': 'conv.double_conv.3',
            'norm2': 'conv.double_conv.4',
        }.items()
    },
}  # fmt: skip


@pytest.fixture(scope='module')
def config(tmp_path_factory, tiny_arch) -> Path:
    path = tmp_path_factory.mktemp('config') / 'catseg.py'
    path.write_text(CONFIG.format(arch=tiny_arch()))
    return path


@pytest.fixture(scope='module')
def ours(config) -> dict[str, torch.Tensor]:
    """A segmentor's tensors."""
    model = Config.fromfile(config).model
    model.vlm.checkpoint = None
    return MODELS.build(model).state_dict()


@pytest.fixture
def source(ours, tmp_path) -> Path:
    names = {name: next(start for start in RELEASED if name.startswith(start)) for name in ours}
    released = {RELEASED[start] + name.removeprefix(start): ours[name] for name, start in names.items()}
    torch.save({'model': released, 'iteration': 3, 'optimizer': {}}, tmp_path / 'released.pth')
    return tmp_path / 'released.pth'


def test_convert(call, config, ours, source, tmp_path):
    target = tmp_path / 'ours.pth'
    code, output, errors = call(TOOL, source, config, '-o', target)
    assert (code, errors) == (0, '')
    assert output == f'{target}: {len(ours)} tensors, loaded back strictly\nleft out: optimizer\n'
    state = read_content(target)['state_dict']
    assert set(state) == set(ours)
    assert all(torch.equal(state[name], value) for name, value in ours.items())


def test_refusals_are_short_and_leave_nothing(call, config, source, tmp_path):
    target, other = tmp_path / 'out' / 'ours.pth', tmp_path / 'other.py'
    (tmp_path / 'broken.pth').write_bytes(b'no checkpoint')
    other.write_text("data_root = 'data'")
    cases = {
        'gone.pth does not exist': [tmp_path / 'gone.pth', config, '-o', target],
        'broken.pth is': [tmp_path / 'broken.pth', config, '-o', target],
        'gone.py': [source, tmp_path / 'gone.py', '-o', target],
        'has no model': [source, other, '-o', target],
        'is the source itself': [source, config, '-o', source],
        'conv1.weight: (32, 1, 7, 7) in the file, (16, 1, 7, 7) in the model': [
            source, config, '-o', target, '--cfg-options', 'model.aggregator.hidden_dim=16',
        ],
    }  # fmt: skip
    for message, arguments in cases.items():
        code, output, errors = call(TOOL, *arguments)
        assert (code, output) == (2, '')
        assert errors.startswith('error: ')
        assert message in errors
    assert not target.parent.exists()
