from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from densevlm_mm.vlm.positions import resize_position_embedding, rotary_table
from densevlm_mm.vlm.region_pooling import pad_regions, pool_boxes, pool_masks
from densevlm_mm.vlm.towers import EvaTower

SWITCHES = {'rope': True, 'intp_freq': True, 'naiveswiglu': True, 'subln': True}
SIZES = {'image_size': 32, 'patch_size': 8, 'width': 48, 'layers': 3, 'head_width': 16, 'mlp_ratio': 2.6667}
CONFIG = {**SIZES, **SWITCHES, 'pt_hw_seq_len': 16, 'eva_model_name': 'tiny'}


def assert_close(actual: Tensor, expected: Tensor, relative: float = 5e-6) -> None:
    assert actual.shape == expected.shape
    worst = (actual - expected).abs().max() / expected.abs().max()
    assert worst < relative, f'off by {worst:.1e} of the largest value'


@pytest.fixture(scope='module')
def data(read_npz) -> dict[str, Tensor]:
    """Weights ``w:``, inputs ``i:`` and outputs ``o:`` of the reference in its own environment (torch 2.0)."""
    return read_npz('tiny_eva')


@pytest.fixture(scope='module')
def tower(data) -> EvaTower:
    tower = EvaTower(24, CONFIG).eval().requires_grad_(False)
    tower.load_state_dict({tower.rename_key(key[2:]): data[key] for key in data if key.startswith('w:')})
    return tower


@pytest.fixture(scope='module')
def dense64(tower, data) -> Tensor:
    return F.normalize(tower.encode_dense(data['i:x64']), dim=1)


@pytest.mark.parity
@pytest.mark.parametrize('size', [32, 64])
def test_image_features(tower, data, size):
    assert_close(tower.encode_image(data[f'i:x{size}']), data[f'o:image{size}'])


@pytest.mark.parity
@pytest.mark.parametrize('size', [32, 64, 60])
def test_dense_features(tower, data, size):
    """60 px are seven patches and a rest that nobody sees."""
    dense = F.normalize(tower.encode_dense(data[f'i:x{size}']), dim=1)
    assert dense.shape[-2:] == (size // 8, size // 8)
    assert_close(dense.flatten(2).transpose(1, 2), data[f'o:dense{size}'])


@pytest.mark.parity
def test_box_features(dense64, data):
    boxes, valid = pad_regions([data['i:boxes0'], data['i:boxes1']])
    assert_close(pool_boxes(dense64, boxes)[valid], data['o:roi64'])


@pytest.mark.parity
def test_mask_features_and_an_empty_mask(dense64, data):
    masks, valid = pad_regions([data['i:masks0'], data['i:masks1']])
    pooled = pool_masks(dense64, masks, normalize=False)[valid]
    assert_close(pooled, data['o:mask64'])
    empty = masks[valid].flatten(1).sum(1) == 0
    assert empty.sum() == 1
    assert not pooled[empty].any()


@pytest.mark.parity
def test_position_table(tower, data):
    table = resize_position_embedding(tower.trunk.pos_embed, (8, 8), (4, 4))
    assert_close(table, data['o:pos64'], 1e-6)


@pytest.mark.parity
@pytest.mark.parametrize('side', [4, 8])
def test_rotary_table(data, side):
    sine, cosine = rotary_table((side, side), 16, 16, torch.device('cpu')).chunk(2, -1)
    assert_close(sine, data[f'o:sin{side}'], 1e-6)
    assert_close(cosine, data[f'o:cos{side}'], 1e-6)


def test_rope_buffers_of_a_checkpoint_are_recomputed():
    assert EvaTower.rename_key('rope.freqs_cos') is None
    assert EvaTower.rename_key('blocks.3.attn.rope.freqs_sin') is None


@pytest.mark.parametrize(('reference', 'ours'), [
    ('pos_embed', 'trunk.pos_embed'),
    ('patch_embed.proj.weight', 'trunk.patch_embed.proj.weight'),
    ('blocks.10.norm1.bias', 'trunk.blocks.10.norm1.bias'),
    ('blocks.0.attn.q_bias', 'trunk.blocks.0.attn.q_proj.bias'),
    ('blocks.0.attn.v_bias', 'trunk.blocks.0.attn.v_proj.bias'),
    ('blocks.0.attn.q_proj.weight', 'trunk.blocks.0.attn.q_proj.weight'),
    ('blocks.0.attn.inner_attn_ln.weight', 'trunk.blocks.0.attn.norm.weight'),
    ('blocks.0.mlp.w1.weight', 'trunk.blocks.0.mlp.fc1_g.weight'),
    ('blocks.0.mlp.w2.bias', 'trunk.blocks.0.mlp.fc1_x.bias'),
    ('blocks.0.mlp.ffn_ln.bias', 'trunk.blocks.0.mlp.norm.bias'),
    ('blocks.0.mlp.w3.weight', 'trunk.blocks.0.mlp.fc2.weight'),
    ('head.bias', 'trunk.head.bias'),
    ('trunk.blocks.0.mlp.fc2.weight', 'trunk.blocks.0.mlp.fc2.weight'),
])  # fmt: skip
def test_names_of_the_reference_and_of_open_clip(reference, ours):
    assert EvaTower.rename_key(reference) == ours


def test_hidden_width_of_the_mlp_is_rounded_down():
    assert EvaTower(24, CONFIG).blocks[0].mlp.fc1_g.out_features == int(48 * 2.6667) == 128


@pytest.mark.parametrize('switch', SWITCHES)
def test_other_eva_variants_are_refused(switch):
    with pytest.raises(ValueError, match=rf"\['{switch}'\]: only EVA-02-CLIP"):
        EvaTower(24, {**CONFIG, switch: False})


def test_unknown_key_is_named():
    with pytest.raises(ValueError, match=r"unknown key\(s\) \['layer'\] in vision_cfg"):
        EvaTower(24, {**CONFIG, 'layer': 3})


def test_stochastic_depth_also_skips_the_value_path(data):
    tower = EvaTower(24, {**CONFIG, 'drop_path_rate': 0.5}).train()
    block = tower.blocks[-1]
    block.drop_path1.drop_prob = block.drop_path2.drop_prob = 1.0
    tokens = tower.stem(data['i:x32'])
    assert torch.equal(tower.run_last_block(tokens, (4, 4), 'value'), tokens)
    tower.eval()
    assert not torch.equal(tower.run_last_block(tokens, (4, 4), 'value'), tokens)


# --- context features -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('letters', ['q', 'qk', 'vkq'])
def test_context_features_are_the_last_block_s_projections(tower, data, letters):
    images = data['i:x60']
    seen = {}
    hooks = [
        getattr(tower.blocks[-1].attn, f'{letter}_proj').register_forward_hook(
            lambda module, args, output, letter=letter: seen.setdefault(letter, output)
        )
        for letter in letters
    ]
    dense, context = tower.encode_dense_and_context(images, 'value', letters)
    for hook in hooks:
        hook.remove()
    expected = torch.cat([seen[letter][:, 1:] for letter in letters], -1)
    assert torch.equal(context, expected.transpose(1, 2).unflatten(2, (7, 7)))
    assert torch.equal(dense, tower.encode_dense(images))


@pytest.mark.parametrize(('letters', 'frozen'), [('', 'qk'), ('q', 'k'), ('kq', '')])
@pytest.mark.parametrize('mode', ['value', 'vv'])
def test_what_the_context_needs_trains_too(letters, frozen, mode):
    tower = EvaTower(24, CONFIG)
    tower.set_trainable(1, mode, letters)
    attention = tower.blocks[-1].attn
    assert ''.join(name for name in 'qk' if not getattr(attention, f'{name}_proj').weight.requires_grad) == frozen
    images = torch.randn(1, 3, 32, 40)
    if letters:
        dense, context = tower.encode_dense_and_context(images, mode, letters)
        loss = dense.square().sum() + context.square().sum()
    else:
        loss = tower.encode_dense(images, mode).square().sum()
    loss.backward()
    assert all((p.grad is not None) == p.requires_grad for p in tower.parameters())
