"""The numbers of the reference implementation, computed from its own weights and inputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from densevlm_mm.vlm.positions import resize_position_embedding, rotary_table
from densevlm_mm.vlm.region_pooling import pad_regions, pool_boxes, pool_masks
from densevlm_mm.vlm.towers import EvaTower

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


class TestAnotherEvaTower:
    """32 px, patch 8, three blocks of width 48; the reference ran it in its own pinned environment (torch 2.0)."""

    @pytest.fixture(scope='class')
    def data(self, read_npz):
        return read_npz('tiny_eva')

    @pytest.fixture(scope='class')
    def tower(self, data):
        switches = {'rope': True, 'intp_freq': True, 'naiveswiglu': True, 'subln': True, 'pt_hw_seq_len': 16}
        sizes = {'image_size': 32, 'patch_size': 8, 'width': 48, 'layers': 3, 'head_width': 16, 'mlp_ratio': 2.6667}
        tower = EvaTower(24, sizes | switches).eval().requires_grad_(False)
        tower.load_state_dict({tower.rename_key(key[2:]): data[key] for key in data if key.startswith('w:')})
        return tower

    @pytest.fixture(scope='class')
    def dense64(self, tower, data):
        return torch.nn.functional.normalize(tower.encode_dense(data['i:x64']), dim=1)

    @pytest.mark.parametrize('size', [32, 64])
    def test_image_features(self, tower, data, size):
        assert_close(tower.encode_image(data[f'i:x{size}']), data[f'o:image{size}'], 5e-6)

    @pytest.mark.parametrize('size', [32, 64, 60])
    def test_dense_features(self, tower, data, size):
        """60 px are seven patches and a rest that nobody sees."""
        dense = torch.nn.functional.normalize(tower.encode_dense(data[f'i:x{size}']), dim=1)
        assert dense.shape[-2:] == (size // 8, size // 8)
        assert_close(dense.flatten(2).transpose(1, 2), data[f'o:dense{size}'], 5e-6)

    def test_box_features(self, dense64, data):
        boxes, valid = pad_regions([data['i:boxes0'], data['i:boxes1']])
        assert_close(pool_boxes(dense64, boxes)[valid], data['o:roi64'], 5e-6)

    def test_mask_features_and_an_empty_mask(self, dense64, data):
        masks, valid = pad_regions([data['i:masks0'], data['i:masks1']])
        pooled = pool_masks(dense64, masks)[valid]
        assert_close(pooled, data['o:mask64'], 5e-6)
        empty = masks[valid].flatten(1).sum(1) == 0
        assert empty.sum() == 1
        assert not pooled[empty].any()

    def test_position_table(self, tower, data):
        table = resize_position_embedding(tower.trunk.pos_embed, (8, 8), (4, 4))
        assert torch.equal(table, data['o:pos64'])

    @pytest.mark.parametrize('side', [4, 8])
    def test_rotary_table(self, data, side):
        sine, cosine = rotary_table((side, side), 16, 16, torch.device('cpu')).chunk(2, -1)
        assert_close(sine, data[f'o:sin{side}'], 1e-6)
        assert_close(cosine, data[f'o:cos{side}'], 1e-6)
