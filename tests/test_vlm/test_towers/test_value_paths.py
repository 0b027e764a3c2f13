"""The dense paths of all families against plain formulas in float64, at native size and others."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZES = [(64, 64), (96, 64)]


def as_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    return tokens.transpose(1, 2).unflatten(2, grid)


def only_itself(count: int) -> Tensor:
    """Additive mask of an attention in which every token attends to itself alone."""
    return torch.full((count, count), float('-inf'), dtype=torch.float64).fill_diagonal_(0)


def plain_layer_norm(cells: Tensor, norm: nn.LayerNorm) -> Tensor:
    centred = cells - cells.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def plain_linear(cells: Tensor, linear: nn.Linear) -> Tensor:
    out = cells @ linear.weight.T
    return out if linear.bias is None else out + linear.bias


def resample(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Positions ``(1, C, h, w)`` on another grid; tables are resampled in fp32 whatever their dtype."""
    return F.interpolate(table.float(), grid, mode='bicubic', align_corners=False, antialias=False).double()


# --- open_clip's ViTs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('family', ['vit', 'vit avg', 'vit clipa', 'vit sin-cos', 'vit custom'])
@pytest.mark.parametrize('mode', ['value', 'vanilla'])
def test_vits_attend_to_themselves_in_the_last_block(make_twins, family, mode):
    ours, theirs = make_twins(family)
    visual, images = theirs.visual, torch.randn(2, 3, 32, 32, dtype=torch.float64)
    tokens = visual._embeds(images)
    *early, last = visual.transformer.resblocks
    for block in early:
        tokens = block(tokens)
    tokens = last(tokens, attn_mask=only_itself(17) if mode == 'value' else None)
    expected = as_map((visual.ln_post(tokens) @ visual.proj)[:, 1:], (4, 4))
    torch.testing.assert_close(ours.visual.encode_dense(images, mode), expected)


@pytest.mark.parametrize('family', ['vit avg', 'vit clipa'])
def test_an_average_of_one_patch_is_its_dense_feature(make_twins, family):
    tower = make_twins(family).ours.visual
    image = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(tower.encode_dense(image, 'vanilla')[..., 0, 0], tower.encode_image(image))


@pytest.mark.parametrize('mode', ['clearclip', 'sclip'])
@pytest.mark.parametrize('family', ['vit avg', 'vit custom'])
def test_self_correlations_of_any_block(make_twins, family, mode):
    ours, theirs = make_twins(family)
    visual, images = theirs.visual, torch.randn(1, 3, 32, 32, dtype=torch.float64)
    early, block = visual.transformer.resblocks
    tokens = early(visual._embeds(images))
    attention = block.attn
    projected = F.linear(block.ln_1(tokens), attention.in_proj_weight, attention.in_proj_bias)
    q, k, v = (x.unflatten(-1, (2, 16)).transpose(1, 2) for x in projected.chunk(3, -1))
    if family == 'vit custom':
        q, k = attention.ln_q(q), attention.ln_k(k)
    mixed = sum((x @ x.mT / 4).softmax(-1) @ v for x in ((q,) if mode == 'clearclip' else (q, k)))
    if family == 'vit custom':
        mixed = attention.ln_inner((mixed * attention.head_scale).transpose(1, 2).flatten(2))
        mixed = block.ln_attn(attention.out_proj(mixed))
    else:
        mixed = attention.out_proj(mixed.transpose(1, 2).flatten(2))
    if mode == 'sclip':
        tokens = tokens + mixed
        mixed = tokens + block.mlp(block.ln_2(tokens))
    expected = as_map((visual.ln_post(mixed) @ visual.proj)[:, 1:], (4, 4))
    torch.testing.assert_close(ours.visual.encode_dense(images, mode), expected)


# --- timm's ViTs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(('family', 'prefix'), [('siglip', 0), ('timm registers', 1)])
def test_a_pooling_head_attends_to_one_patch_alone(make_twins, family, prefix):
    ours, theirs = make_twins(family)
    trunk, images = theirs.visual.trunk, torch.randn(2, 3, 32, 32, dtype=torch.float64)
    tokens = trunk.forward_features(images)[:, prefix:]
    pool = trunk.attn_pool
    query = plain_linear(pool.latent[0], pool.q).unflatten(-1, (2, 16)).transpose(0, 1)  # (heads, 1, 16)
    keys, values = (
        x.unflatten(-1, (2, 16)).transpose(1, 2) for x in plain_linear(tokens, pool.kv).chunk(2, -1)
    )  # (B, heads, 16 patches, 16)
    scores = (query @ keys.mT / 4).expand(-1, -1, 16, -1) + only_itself(16)  # a row per patch that is attended to
    attended = (scores.softmax(-1) @ values).transpose(1, 2).flatten(2)
    attended = plain_linear(attended, pool.proj)
    attended = attended + pool.mlp(plain_layer_norm(attended, pool.norm))
    expected = as_map(theirs.visual.head(trunk.head(attended)), (4, 4))
    torch.testing.assert_close(ours.visual.encode_dense(images), expected)


def test_a_pooling_head_on_one_patch_is_its_dense_feature(make_twins):
    tower = make_twins('siglip').ours.visual
    image = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(tower.encode_dense(image)[..., 0, 0], tower.encode_image(image))


@pytest.mark.parametrize(('family', 'prefix'), [('timm token', 1), ('timm avg', 0)])
@pytest.mark.parametrize('mode', ['value', 'vanilla'])
def test_timm_s_vits_attend_to_themselves_in_the_last_block(make_twins, family, prefix, mode):
    ours, theirs = make_twins(family)
    trunk, images = theirs.visual.trunk, torch.randn(2, 3, 32, 32, dtype=torch.float64)
    tokens = trunk.norm_pre(trunk._pos_embed(trunk.patch_embed(images)))
    tokens = trunk.blocks[0](tokens)
    tokens = trunk.blocks[1](tokens, attn_mask=only_itself(16 + prefix) if mode == 'value' else None)
    patches = trunk.head(trunk.fc_norm(trunk.norm(tokens)))[:, prefix:]
    expected = as_map(theirs.visual.head(patches), (4, 4))
    torch.testing.assert_close(ours.visual.encode_dense(images, mode), expected)


@pytest.mark.parametrize('family', ['siglip', 'timm token', 'timm registers'])
def test_positions_are_resampled_without_antialiasing(make_twins, family):
    tower = make_twins(family).ours.visual
    images = torch.randn(1, 3, 48, 24, dtype=torch.float64)
    patches = F.conv2d(images, tower.trunk.patch_embed.proj.weight, tower.trunk.patch_embed.proj.bias, stride=8)
    slots = 1 if family == 'timm token' else tower.trunk.pos_embed.shape[1] - 16
    table = tower.trunk.pos_embed[:, slots:].transpose(1, 2).unflatten(2, (4, 4))
    table = resample(table, (6, 3))
    expected = tower.trunk.norm_pre((patches + table).flatten(2).transpose(1, 2))
    torch.testing.assert_close(tower.stem(images)[:, tower.num_prefix :], expected)


# --- convolutions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('family', ['convnext', 'convnext mlp'])
def test_convnext_s_head_at_every_cell(make_twins, family, size):
    ours, theirs = make_twins(family)
    trunk, head = theirs.visual.trunk, theirs.visual.head
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    cells = plain_layer_norm(trunk.stages(trunk.stem(images)).permute(0, 2, 3, 1), trunk.head.norm)
    if family == 'convnext':
        expected = plain_linear(cells, head.proj)
    else:
        expected = plain_linear(F.gelu(plain_linear(cells, head.mlp.fc1)), head.mlp.fc2)
    torch.testing.assert_close(ours.visual.encode_dense(images), expected.permute(0, 3, 1, 2))


def resnet_cells(theirs: nn.Module, images: Tensor) -> Tensor:
    """Tokens ``(B, 1 + h * w, 256)`` of the attention pool, that of the mean first, positions added."""
    visual = theirs.visual
    maps = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(images)))))
    cells = torch.cat([maps.mean((2, 3))[:, None], maps.flatten(2).transpose(1, 2)], 1)
    table = visual.attnpool.positional_embedding
    native = table[1:].T.unflatten(1, (2, 2))[None]
    if maps.shape[-2:] != (2, 2):
        native = resample(native, maps.shape[-2:])
    return cells + torch.cat([table[:1], native[0].flatten(1).T])


def attend(pool: nn.Module, cells: Tensor, mask: Tensor | None = None) -> Tensor:
    q, k, v = (
        plain_linear(cells, getattr(pool, f'{name}_proj')).unflatten(-1, (pool.num_heads, -1)).transpose(1, 2)
        for name in 'qkv'
    )
    scores = q @ k.mT / q.shape[-1] ** 0.5
    mixed = (scores if mask is None else scores + mask).softmax(-1) @ v
    return plain_linear(mixed.transpose(1, 2).flatten(2), pool.c_proj)


@pytest.mark.parametrize('size', SIZES)
def test_resnet_s_pool_attends_to_one_cell_alone(make_twins, size):
    ours, theirs = make_twins('resnet')
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    cells = resnet_cells(theirs, images)
    expected = attend(theirs.visual.attnpool, cells, only_itself(cells.shape[1]))[:, 1:]
    grid = size[0] // 32, size[1] // 32
    torch.testing.assert_close(ours.visual.encode_dense(images), as_map(expected, grid))


@pytest.mark.parametrize('size', SIZES)
def test_resnet_s_pool_at_any_size(make_twins, size):
    ours, theirs = make_twins('resnet')
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    expected = attend(theirs.visual.attnpool, resnet_cells(theirs, images))[:, 0]
    torch.testing.assert_close(ours.visual.encode_image(images), expected)


def test_an_odd_row_makes_no_cell_of_a_resnet(make_twins):
    tower = make_twins('resnet').ours.visual
    images = torch.randn(1, 3, 95, 63, dtype=torch.float64)
    assert tower.encode_dense(images).shape[-2:] == (2, 1)
    torch.testing.assert_close(tower.encode_dense(images), tower.encode_dense(images[..., :94, :62]))
