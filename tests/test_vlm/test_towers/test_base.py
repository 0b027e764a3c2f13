from __future__ import annotations

import pytest
import torch

from densevlm_mm.vlm import VLM
from densevlm_mm.vlm.towers import VisionTower

# parameter tensors per block, and those of the last block that only attention uses
TENSORS = {'eva': (21, 3), 'openai': (12, 0)}
STEM_TENSORS = {'eva': 4, 'openai': 5}


@pytest.fixture
def tower(tiny_vlm, family) -> VisionTower:
    return tiny_vlm(family).visual


def trainable(tower: VisionTower) -> list[str]:
    return [name for name, parameter in tower.named_parameters() if parameter.requires_grad]


@pytest.mark.parametrize('mode', ['value', 'vanilla'])
@pytest.mark.parametrize('blocks', [0, 1, 2, 'all'])
def test_the_last_blocks_train_but_for_what_the_mode_leaves_unused(tower, family, blocks, mode):
    blocks = len(tower.blocks) if blocks == 'all' else blocks
    per_block, attention_only = TENSORS[family]
    tower.set_trainable(blocks, mode)
    expected = per_block * blocks - (attention_only if mode == 'value' and blocks else 0)
    assert len(trainable(tower)) == expected
    first = len(tower.blocks) - blocks
    within = {id(parameter) for block in tower.blocks[first:] for parameter in block.parameters()}
    assert {id(p) for p in tower.parameters() if p.requires_grad} <= within


@pytest.mark.parametrize('mode', ['value', 'vanilla'])
@pytest.mark.parametrize('blocks', [1, 2, 'all'])
def test_whatever_trains_gets_a_gradient(tower, blocks, mode):
    tower.set_trainable(len(tower.blocks) if blocks == 'all' else blocks, mode)
    tower.encode_dense(torch.randn(1, 3, 48, 64), mode).square().sum().backward()
    for name, parameter in tower.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
        else:
            assert parameter.grad is None, name


def test_queries_and_keys_of_the_last_block_are_frozen_in_value_mode(tiny_vlm):
    tower = tiny_vlm('eva').visual
    tower.set_trainable(2)
    attention, before = tower.blocks[-1].attn, tower.blocks[-2].attn
    frozen = [*attention.q_proj.parameters(), *attention.k_proj.parameters()]
    assert len(frozen) == 3
    assert not any(parameter.requires_grad for parameter in frozen)
    assert all(parameter.requires_grad for parameter in attention.v_proj.parameters())
    assert all(parameter.requires_grad for parameter in before.parameters())


def test_the_released_student_trains_what_the_reference_trains():
    """All twelve blocks of B/16, 85.13 M parameters; queries and keys of the last one never get a gradient there."""
    with torch.device('meta'):
        tower = VLM('EVA02-CLIP-B-16').visual
    tower.set_trainable(12, 'vanilla')
    whole = sum(p.numel() for p in tower.parameters() if p.requires_grad)
    assert whole / 1e6 == pytest.approx(85.13, abs=0.005)
    tower.set_trainable(12)
    assert len(trainable(tower)) == 12 * 21 - 3 == 249
    assert sum(p.numel() for p in tower.parameters() if p.requires_grad) == whole - (2 * 768 + 1) * 768


def test_a_second_call_starts_over(tower):
    tower.set_trainable(3, 'vanilla')
    tower.unfreeze_stem()
    tower.set_trainable(0)
    assert trainable(tower) == []
    tower.set_trainable(1, 'vanilla')
    assert all(f'.{len(tower.blocks) - 1}.' in name for name in trainable(tower))


@pytest.mark.parametrize('blocks', [-1, 99])
def test_a_number_of_blocks_that_the_tower_does_not_have(tower, blocks):
    with pytest.raises(ValueError, match=rf'trainable blocks must be in 0\.\.[34], got {blocks}'):
        tower.set_trainable(blocks)


def test_an_unknown_mode(tower):
    with pytest.raises(ValueError, match="has no dense mode 'maskclip'"):
        tower.set_trainable(1, 'maskclip')
    with pytest.raises(ValueError, match="has no dense mode 'maskclip'"):
        tower.encode_dense(torch.zeros(1, 3, 48, 48), 'maskclip')


def test_frozen_modules_stay_in_eval_mode(tower):
    tower.set_trainable(1)
    tower.train()
    *frozen, last = tower.blocks
    assert tower.training
    assert all(module.training for module in last.mlp.modules())
    assert not any(module.training for block in frozen for module in block.modules())
    tower.eval()
    assert not any(module.training for module in tower.modules())


def test_a_frozen_tower_can_be_told_to_train(tower):
    tower.set_trainable(0)
    assert tower.train() is tower
    assert not any(module.training for module in tower.modules())


def test_train_of_the_whole_model_respects_it(tiny_vlm, family):
    vlm = tiny_vlm(family)
    vlm.visual.set_trainable(1)
    vlm.train()
    assert vlm.training and vlm.visual.blocks[-1].training
    assert not vlm.visual.blocks[0].training


def test_the_stem_can_train_too(tower, family):
    tower.set_trainable(0)
    tower.unfreeze_stem()
    assert len(trainable(tower)) == STEM_TENSORS[family]
    tower.encode_dense(torch.randn(1, 3, 48, 64)).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in tower.parameters() if p.requires_grad)


def test_stopping_early_gives_the_same_maps(tower):
    images = torch.randn(1, 3, 48, 48)
    whole, part = tower.run(images, indices=[0, 1]), tower.run(images, indices=[0, 1], depth=2)
    for ours, expected in zip(part.maps, whole.maps, strict=True):
        assert torch.equal(ours, expected)
    assert torch.equal(part.state[:, 1:].transpose(1, 2).flatten(2), part.maps[1].flatten(2))


def test_normalisation_of_the_images_that_clip_was_trained_with(tower):
    assert tower.mean == (0.48145466, 0.4578275, 0.40821073)
    assert tower.std == (0.26862954, 0.26130258, 0.27577711)
