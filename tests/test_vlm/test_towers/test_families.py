"""What holds for every family: open_clip's numbers, any image size, and what trains."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from densevlm_mm.vlm.towers import VisionTower

from .conftest import CONVOLUTIONAL, FAMILIES, POOLED_BY_ATTENTION, TRANSFORMERS, arch_of


@pytest.fixture(params=FAMILIES, scope='module')
def any_family(request) -> str:
    return request.param


@pytest.fixture(scope='module')
def twins(make_twins, any_family):
    """For tests that only look."""
    return make_twins(any_family)


@pytest.fixture
def tower(make_twins, any_family) -> VisionTower:
    """For tests that train."""
    return make_twins(any_family).ours.visual


def images_for(tower: VisionTower, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, *tower.image_size, dtype=torch.float64)


def test_image_and_text_embeddings_are_open_clip_s(twins):
    images, tokens = images_for(twins.ours.visual), torch.randint(1, 50, (3, 12))
    torch.testing.assert_close(twins.ours.encode_image(images, normalize=False), twins.theirs.encode_image(images))
    torch.testing.assert_close(twins.ours.encode_text(tokens, normalize=False), twins.theirs.encode_text(tokens))
    assert twins.ours.logit_scale == twins.theirs.logit_scale
    assert twins.ours.logit_bias == twins.theirs.logit_bias


def test_only_a_sigmoid_s_model_has_a_bias(twins, any_family):
    assert (twins.ours.logit_bias is not None) == (any_family == 'siglip')


def test_a_batch_is_its_images_one_by_one(twins):
    images = images_for(twins.ours.visual)
    for encode in (twins.ours.encode_image, twins.ours.encode_dense):
        torch.testing.assert_close(encode(images), torch.cat([encode(image[None]) for image in images]))


@pytest.mark.parametrize('size', [(96, 64), (64, 97), (103, 71)])
def test_images_of_any_size(twins, size):
    vlm = twins.ours
    images = torch.randn(1, 3, *size, dtype=torch.float64)
    grid = tuple(n // p for n, p in zip(size, vlm.visual.patch_size, strict=True))
    assert vlm.encode_dense(images).shape == (1, vlm.embed_dim, *grid)
    assert vlm.encode_image(images).shape == (1, vlm.embed_dim)
    regions = vlm.encode_boxes(images, [torch.tensor([[0.1, 0.2, 0.7, 0.9], [0, 0, 1, 1]])])
    masks = vlm.encode_masks(images, [torch.ones(2, *grid)])
    assert regions.shape == masks.shape == (2, vlm.embed_dim)
    torch.testing.assert_close(F.normalize(regions[1], dim=0), masks[0])


def test_maps_of_blocks_are_as_wide_and_fine_as_the_tower_says(twins):
    tower = twins.ours.visual
    maps = twins.ours.encode_blocks(torch.randn(1, 3, 103, 71, dtype=torch.float64), range(len(tower.blocks)))
    assert [m.shape[1] for m in maps] == list(tower.block_channels)
    assert [tuple(m.shape[2:]) for m in maps] == [(103 // rows, 71 // columns) for rows, columns in tower.block_strides]
    assert tuple(tower.block_strides[-1]) == tower.patch_size


@pytest.mark.parametrize('family', TRANSFORMERS)
def test_a_vit_never_sees_what_does_not_fill_a_patch(make_twins, family):
    vlm = make_twins(family).ours
    images = torch.randn(1, 3, 45, 39, dtype=torch.float64)
    torch.testing.assert_close(vlm.encode_dense(images), vlm.encode_dense(images[..., :40, :32]))


@pytest.mark.parametrize('family', CONVOLUTIONAL)
def test_images_smaller_than_a_cell_are_refused(make_twins, family):
    with pytest.raises(ValueError, match=r'images of \(31, 64\) px are smaller than one patch \(32, 32\)'):
        make_twins(family).ours.encode_image(torch.zeros(1, 3, 31, 64))


def test_the_image_and_its_dense_map_from_one_pass(twins):
    images = images_for(twins.ours.visual)
    for mode in twins.ours.visual.dense_modes:
        image, dense = twins.ours.visual.encode_image_and_dense(images, mode)
        torch.testing.assert_close(image, twins.ours.visual.encode_image(images))
        torch.testing.assert_close(dense, twins.ours.visual.encode_dense(images, mode))


def test_dense_modes(twins, any_family):
    modes = twins.ours.visual.dense_modes
    if any_family in POOLED_BY_ATTENTION + CONVOLUTIONAL:
        assert modes == ('value',)
    else:
        assert modes[:2] == ('value', 'vanilla')
        images = images_for(twins.ours.visual)
        value, vanilla = (twins.ours.visual.encode_dense(images, mode) for mode in ('value', 'vanilla'))
        assert (value - vanilla).norm() > 0.001 * vanilla.norm()
    with pytest.raises(ValueError, match=r"has no dense mode 'csa'; it defines \('value'"):
        twins.ours.visual.encode_dense(images_for(twins.ours.visual), 'csa')


def test_normalisation_of_the_images(twins, any_family):
    tower = twins.ours.visual
    if any_family in POOLED_BY_ATTENTION:
        assert tower.mean == tower.std == (0.5, 0.5, 0.5)
    else:
        assert (tower.mean[0], tower.std[0]) == (0.48145466, 0.26862954)


# --- what trains ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('blocks', [0, 1, 'all'])
def test_what_trains_gets_a_gradient_and_the_rest_stays(tower, blocks):
    for mode in tower.dense_modes:
        tower.set_trainable(len(tower.blocks) if blocks == 'all' else blocks, mode)
        tower.train()
        before = {name: value.clone() for name, value in tower.state_dict().items()}
        loss = tower.encode_dense(images_for(tower), mode).square().sum()
        if blocks:
            loss.backward()
            torch.optim.SGD([p for p in tower.parameters() if p.requires_grad], 0.1).step()
        trained = {name for name, parameter in tower.named_parameters() if parameter.requires_grad}
        assert {name for name, parameter in tower.named_parameters() if parameter.grad is not None} == trained
        changed = {name for name, value in tower.state_dict().items() if not torch.equal(value, before[name])}
        assert changed <= trained
        assert bool(changed) == bool(trained) == bool(blocks)
        tower.zero_grad(set_to_none=True)


@pytest.mark.parametrize('mode', [True, False])
def test_batch_norms_never_learn_nor_count(make_twins, mode):
    tower = make_twins('resnet').ours.visual
    norms = [module for module in tower.modules() if isinstance(module, nn.BatchNorm2d)]
    tower.set_trainable(4)
    tower.unfreeze_stem()
    tower.train(mode)
    assert norms
    assert not any(norm.training for norm in norms)
    assert not any(parameter.requires_grad for norm in norms for parameter in norm.parameters())
    assert tower.trunk.layer4.training == mode


def test_the_stem_can_train_too(tower, any_family):
    tower.set_trainable(0)
    tower.unfreeze_stem()
    tower.encode_dense(images_for(tower)).square().sum().backward()
    trained = {name for name, parameter in tower.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, parameter in tower.named_parameters() if parameter.requires_grad}
    assert trained
    assert not any('block' in name or 'stages' in name or 'layer' in name for name in trained)
    assert ('trunk.positional_embedding' in trained) == (any_family.startswith('vit') and 'sin-cos' not in any_family)


# --- context features -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('letters', ['q', 'kq', 'qkv'])
@pytest.mark.parametrize('family', ['vit', 'vit avg', 'siglip', 'timm token'])
def test_context_features_are_what_the_last_block_projects(make_twins, family, letters):
    twins = make_twins(family)
    tower, images = twins.ours.visual, images_for(twins.ours.visual)
    seen = {}
    fused = tower.blocks[-1].ln_1 if family.startswith('vit') else tower.blocks[-1].attn.qkv
    fused.register_forward_hook(lambda module, args, output: seen.setdefault('output', output))
    dense, context = tower.encode_dense_and_context(images, 'value', letters)
    projected = seen['output']
    if family.startswith('vit'):
        attention = tower.blocks[-1].attn
        projected = projected @ attention.in_proj_weight.T + attention.in_proj_bias
    parts = dict(zip('qkv', projected[:, tower.num_prefix :].chunk(3, -1), strict=True))
    expected = torch.cat([parts[letter] for letter in letters], -1).transpose(1, 2).unflatten(2, (4, 4))
    torch.testing.assert_close(context, expected)
    torch.testing.assert_close(dense, tower.encode_dense(images))
    assert context.requires_grad


@pytest.mark.parametrize('family', ['resnet', 'convnext'])
def test_convolutions_have_no_context_features(make_twins, family):
    tower = make_twins(family).ours.visual
    with pytest.raises(ValueError, match='has no queries, keys and values; take a ViT'):
        tower.encode_dense_and_context(images_for(tower))
    with pytest.raises(ValueError, match='has no queries, keys and values; take a ViT'):
        tower.set_trainable(1, 'value', 'q')


@pytest.mark.parametrize('letters', ['', 'x', 'qq', 'qx'])
def test_letters_that_name_nothing(make_twins, letters):
    tower = make_twins('vit').ours.visual
    with pytest.raises(ValueError, match="some of the letters 'q', 'k' and 'v', got"):
        tower.encode_dense_and_context(images_for(tower), 'value', letters)


# --- distillation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('student', ['resnet', 'siglip', 'convnext'])
@pytest.mark.parametrize('teacher', ['vit clipa', 'resnet', 'timm avg'])
def test_any_student_and_teacher_agree_on_the_regions(make_twins, student, teacher):
    boxes = [torch.tensor([[0.0, 0, 0.5, 0.5], [0.2, 0.3, 0.9, 1]]), torch.tensor([[0.0, 0, 1, 1]])]
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    vlms = [make_twins(family).ours for family in (student, teacher)]
    features = [vlm.encode_boxes(images, boxes) for vlm in vlms]
    assert [f.shape for f in features] == [(3, arch_of(family)['embed_dim']) for family in (student, teacher)]
    assert all(f.isfinite().all() for f in features)
