"""Counted arithmetic against closed formulas and the cost model of the method."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from densevlm_mm.benchmark.flops import dense_flops, step_flops
from densevlm_mm.benchmark.reference_like import dense_features
from densevlm_mm.benchmark.synthetic import TINY_ARCHS
from densevlm_mm.vlm.architectures import build_vision_tower, resolve_arch

STUDENT, TEACHER = 'EVA02-CLIP-B-16', 'EVA02-CLIP-L-14-336'


def formula(arch: str | dict, size: int) -> int:
    """FLOPs of dense features: two per multiplication, each matrix product of the tower named once."""
    config = resolve_arch(arch)
    vision = config['vision_cfg']
    width, patch, layers = (vision[key] for key in ('width', 'patch_size', 'layers'))
    hidden, patches = int(width * vision['mlp_ratio']), (size // patch) ** 2
    tokens = patches + 1
    embedding = patches * 3 * patch**2 * width
    projection = tokens * width**2  # queries, keys, values and output: four of them
    attention = 2 * tokens**2 * width  # of queries with keys, of weights with values
    mlp = 3 * tokens * width * hidden
    blocks = (layers - 1) * (4 * projection + attention + mlp) + (2 * projection + mlp)
    return 2 * (embedding + blocks + patches * width * config['embed_dim'])


@pytest.mark.parametrize(('arch', 'size'), [
    (STUDENT, 224), (STUDENT, 512), (TEACHER, 512), (TINY_ARCHS['tiny-student'], 64), (TINY_ARCHS['tiny-teacher'], 64),
])  # fmt: skip
def test_count_is_that_of_the_formula(arch, size):
    assert dense_flops(arch, size) == {'forward': formula(arch, size), 'backward': 0}


def test_backward_of_all_blocks_is_nearly_twice_the_forward():
    """The patch embedding is frozen, and the first block's input needs no gradient."""
    flops = dense_flops(STUDENT, 224, trainable_blocks=12)
    assert 1.9 < flops['backward'] / flops['forward'] < 2


def test_fewer_blocks_cost_less_backward():
    all_of_them, one = (dense_flops(STUDENT, 224, trainable_blocks=n)['backward'] for n in (12, 1))
    assert 0 < one < all_of_them / 10


def test_step_at_512_px():
    """Cost model: 209 for the student, 940 for the teacher, 1567 for a step if backward is twice the forward."""
    flops = {name: round(count / 1e9) for name, count in step_flops(STUDENT, TEACHER, 512, 12).items()}
    assert flops == {'teacher': 940, 'student': 209, 'backward': 415, 'total': 1564}


def test_attention_counts_in_full():
    """Counted while it runs, the CPU's fused attention would be missing; matrix by matrix it is not."""
    tower = build_vision_tower(TINY_ARCHS['tiny-student'])
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        dense_features(tower, torch.randn(2, 3, 64, 64), fused=False)
    assert counter.get_total_flops() == 2 * dense_flops(TINY_ARCHS['tiny-student'], 64)['forward']
