"""Gradient checkpointing and compilation change what a step costs, not what it computes."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from torch import Tensor

from densevlm_mm.vlm.towers import VisionTower


@pytest.fixture
def tower(tiny_vlm, family) -> VisionTower:
    tower = tiny_vlm(family).visual
    tower.set_trainable(len(tower.blocks))
    return tower


def dense_and_gradients(tower: VisionTower, mode: str) -> list[Tensor]:
    images = torch.randn(1, 3, 48, 64, generator=torch.Generator().manual_seed(1))
    dense = tower.encode_dense(images, mode)
    trained = [p for p in tower.parameters() if p.requires_grad]
    return [dense, *torch.autograd.grad(dense.square().mean(), trained)]


def count_runs(tower: VisionTower) -> Counter:
    """Counts how often the MLP of each block begins, which every dense mode here uses."""
    runs: Counter = Counter()
    for index, block in enumerate(tower.blocks):
        block.mlp.register_forward_pre_hook(lambda *_, i=index: runs.update([i]))
    return runs


@pytest.mark.parametrize('mode', ['value', 'vanilla'])
def test_checkpointing_runs_every_block_again_and_gives_the_same_gradients(tower, mode):
    plain = dense_and_gradients(tower, mode)
    runs = count_runs(tower)
    tower.grad_checkpointing = True
    checkpointed = dense_and_gradients(tower, mode)
    assert runs == dict.fromkeys(range(len(tower.blocks)), 2)
    for value, expected in zip(checkpointed, plain, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-7)


def test_checkpointing_keeps_less_for_the_backward_pass(tower):
    def saved_bytes() -> int:
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            dense = tower.encode_dense(torch.randn(1, 3, 64, 64))
        assert dense.requires_grad
        weights = {parameter.data_ptr() for parameter in tower.parameters()}
        return sum(size for pointer, size in kept.items() if pointer not in weights)

    plain = saved_bytes()
    tower.grad_checkpointing = True
    assert saved_bytes() < plain / 2


def test_without_gradients_nothing_is_checkpointed(tower):
    tower.grad_checkpointing = True
    with torch.no_grad():
        assert not tower.encode_dense(torch.randn(1, 3, 48, 64)).requires_grad


def test_compiled_blocks_compute_the_same(tower):
    names, plain = list(tower.state_dict()), dense_and_gradients(tower, 'value')
    compiled = copy.deepcopy(tower)
    compiled.compile_blocks(backend='aot_eager', fullgraph=True)
    assert list(compiled.state_dict()) == names
    for value, expected in zip(dense_and_gradients(compiled, 'value'), plain, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    frames = torch._dynamo.utils.counters['stats']
    assert frames['calls_captured'] > 0


@pytest.mark.parametrize('mode', ['value', 'vanilla'])
def test_a_copy_of_a_compiled_tower_runs_its_own_weights(tower, mode):
    images = torch.randn(1, 3, 48, 64)
    tower.compile_blocks(backend='aot_eager')
    before = tower.encode_dense(images, mode).detach()
    other = copy.deepcopy(tower)
    with torch.no_grad():
        for parameter in other.blocks[-1].parameters():
            parameter.mul_(1.5)
    assert not torch.allclose(other.encode_dense(images, mode), before, rtol=1e-3)
    torch.testing.assert_close(tower.encode_dense(images, mode).detach(), before)
