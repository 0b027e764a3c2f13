"""The numbers of the reference implementation, computed from its own weights and inputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytestmark = pytest.mark.parity

CASES = [('eva', size) for size in ('48x48', '64x64', '96x96')]
CASES += [('openai', size) for size in ('48x48', '64x64', '32x80')]
DEPTH = {'eva': 4, 'openai': 3}


def assert_close(actual: Tensor, expected: Tensor, relative: float) -> None:
    assert actual.shape == expected.shape
    worst = (actual - expected).abs().max() / expected.abs().max()
    assert worst < relative, f'off by {worst:.1e} of the largest value'


@pytest.fixture(scope='module')
def vlms(tiny_vlm):
    return {family: tiny_vlm(family).requires_grad_(False) for family in ('eva', 'openai')}


@pytest.fixture(scope='module')
def numbers(read_npz):
    return {name: read_npz(name) for name in ('eva_tiny', 'openai_tiny', 'eva_tiny_blocks', 'openai_tiny_blocks')}


@pytest.mark.parametrize(('family', 'size'), CASES)
def test_image_and_dense_features(vlms, numbers, family, size):
    vlm, expected = vlms[family], numbers[f'{family}_tiny']
    image = expected[f'{size}/image']
    assert_close(vlm.encode_image(image), expected[f'{size}/encode_image'], 2e-6)
    assert_close(vlm.encode_dense(image), expected[f'{size}/encode_dense'], 2e-6)


@pytest.mark.parametrize(('family', 'size'), CASES)
def test_region_features(vlms, numbers, family, size):
    vlm, expected = vlms[family], numbers[f'{family}_tiny']
    image = expected[f'{size}/image']
    boxes, masks = ([expected[f'{size}/{kind}{i}'] for i in (0, 1)] for kind in ('boxes', 'masks'))
    assert_close(vlm.encode_boxes(image, boxes), expected[f'{size}/roi_features'], 5e-6)
    assert_close(vlm.encode_masks(image, masks), expected[f'{size}/mask_features'], 5e-6)


@pytest.mark.parametrize('family', DEPTH)
def test_text_features(vlms, numbers, family):
    expected = numbers[f'{family}_tiny']
    assert_close(vlms[family].encode_text(expected['tokens']), expected['encode_text'], 2e-6)


@pytest.mark.parametrize(('family', 'size'), CASES)
def test_raw_tokens_after_every_block(vlms, numbers, family, size):
    vlm, expected = vlms[family], numbers[f'{family}_tiny_blocks']
    image = numbers[f'{family}_tiny'][f'{size}/image']
    for index, tokens in enumerate(vlm.encode_blocks(image, range(DEPTH[family]))):
        assert_close(tokens, expected[f'{size}/block{index}'], 5e-6)


@pytest.mark.parametrize('size', ['48x48', '64x64', '96x96'])
def test_raw_tokens_of_the_value_path(vlms, numbers, size):
    (tokens,) = vlms['eva'].visual.run(numbers['eva_tiny'][f'{size}/image'], 'value', indices=[-1]).maps
    assert_close(tokens, numbers['eva_tiny_blocks'][f'{size}/block3_value'], 5e-6)


@pytest.mark.parametrize(('mode', 'released_as'), [('value', 'maskclip'), ('vanilla', 'vanilla')])
@pytest.mark.parametrize('size', ['48x48', '64x64', '96x96'])
def test_unnormalised_dense_map_of_each_mode(tiny_vlm, numbers, read_npz, mode, released_as, size):
    vlm = tiny_vlm('eva', dense_mode=mode)
    with torch.no_grad():
        dense = vlm.encode_dense(numbers['eva_tiny'][f'{size}/image'], normalize=False)
    assert_close(dense, read_npz('eva_tiny_dense_modes')[f'{size}/{released_as}'], 2e-6)
