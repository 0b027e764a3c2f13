from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch._subclasses import FakeTensorMode

from densevlm_mm.vlm import VLM, load_vlm, positions
from densevlm_mm.vlm.positions import resize_position_embedding, rotary_table, token_rotations

CPU = torch.device('cpu')
grids = st.tuples(st.integers(1, 9), st.integers(1, 9))


@given(grids, grids)
def test_tables_are_resized_bicubically_without_antialiasing(grid, native):
    table = torch.randn(1, 1 + native[0] * native[1], 4, generator=torch.Generator().manual_seed(0))
    resized = resize_position_embedding(table, grid, native)
    cells = table[:, 1:].transpose(1, 2).unflatten(2, native)
    if grid != native:
        cells = F.interpolate(cells, size=grid, mode='bicubic', align_corners=False, antialias=False)
    torch.testing.assert_close(resized[:, 1:], cells.flatten(2).transpose(1, 2))
    assert torch.equal(resized[:, :1], table[:, :1])


@given(grids, grids, st.integers(0, 5))
def test_slots_before_the_patches_are_kept(grid, native, prefix):
    """None for SigLIP, one for a class token, more for registers."""
    table = torch.randn(1, prefix + native[0] * native[1], 4, generator=torch.Generator().manual_seed(0))
    resized = resize_position_embedding(table, grid, native, num_prefix=prefix)
    assert torch.equal(resized[:, :prefix], table[:, :prefix])
    cells = torch.cat([torch.zeros(1, 1, 4), table[:, prefix:]], 1)
    assert torch.equal(resized[:, prefix:], resize_position_embedding(cells, grid, native)[:, 1:])


def test_equal_counts_are_not_equal_grids():
    table = torch.randn(1, 1 + 24, 4)
    assert not torch.equal(resize_position_embedding(table, (4, 6), (6, 4)), table)
    assert resize_position_embedding(table, (6, 4), (6, 4)) is table


def test_a_resized_table_keeps_its_dtype_and_gradient():
    table = torch.randn(1, 10, 4, dtype=torch.bfloat16, requires_grad=True)
    resized = resize_position_embedding(table, (5, 2), (3, 3))
    assert resized.dtype == torch.bfloat16
    resized.sum().backward()
    assert table.grad.abs().sum() > 0


def test_a_table_that_does_not_train_is_resampled_once_for_a_grid():
    table = torch.nn.Parameter(torch.randn(1, 10, 4), requires_grad=False)
    with torch.inference_mode():
        resized = resize_position_embedding(table, (5, 2), (3, 3))
    assert not resized.is_inference()
    assert resize_position_embedding(table, (5, 2), (3, 3)) is resized
    assert resize_position_embedding(table, (4, 4), (3, 3)).shape == (1, 17, 4)


@pytest.mark.parametrize('change', ['in place', 'another dtype', 'another tensor', 'trains'])
def test_a_changed_table_is_resampled_anew(change):
    table = torch.nn.Parameter(torch.randn(1, 10, 4), requires_grad=False)
    resized = resize_position_embedding(table, (5, 2), (3, 3))
    with torch.no_grad():
        if change == 'in place':
            table.mul_(2)
        elif change == 'another dtype':
            table.data = table.data.double() * 2
        elif change == 'another tensor':
            table.data = table.data * 2
        else:
            table.requires_grad_(True).data.mul_(2)
    again = resize_position_embedding(table, (5, 2), (3, 3))
    assert again.dtype == table.dtype
    assert again.requires_grad == (change == 'trains')
    torch.testing.assert_close(again.detach().float(), 2 * resized)


@given(grids, st.sampled_from([8, 16, 64]), st.integers(1, 24))
def test_rotary_angles(grid, head_dim, span):
    """Half of a head turns with the row, half with the column, each frequency twice."""
    height, width = grid
    frequencies = 10000.0 ** (-torch.arange(head_dim // 4) / (head_dim // 4)).repeat_interleave(2)
    rows = (torch.arange(height) / height * span)[:, None, None] * frequencies
    columns = (torch.arange(width) / width * span)[None, :, None] * frequencies
    angles = torch.cat([rows.expand(height, width, -1), columns.expand(height, width, -1)], -1).flatten(0, 1)
    table = rotary_table(grid, head_dim, span, CPU)
    assert table.shape == (height * width, 2 * head_dim)
    torch.testing.assert_close(table, torch.cat([angles.sin(), angles.cos()], -1), rtol=1e-5, atol=1e-5)


def test_every_grid_covers_the_span_of_pre_training():
    """The native grid has one position per cell; twice as many cells lie at half steps."""
    native, finer = rotary_table((4, 4), 16, 4, CPU), rotary_table((8, 8), 16, 4, CPU)
    assert torch.equal(finer.unflatten(0, (8, 8))[::2, ::2].flatten(0, 1), native)


@pytest.mark.parametrize('make', [rotary_table, token_rotations])
def test_a_table_is_made_once(make):
    assert make((3, 5), 16, 4, CPU) is make((3, 5), 16, 4, CPU)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_a_table_is_not_rounded_by_autocast(dtype):
    expected = rotary_table((3, 5), 16, 4, CPU)
    rotary_table.cache_clear()
    with torch.autocast('cpu', dtype=dtype):
        table = rotary_table((3, 5), 16, 4, CPU)
    assert table.dtype == torch.float32
    assert torch.equal(table, expected)


def test_a_table_made_under_inference_mode_serves_training(word_arch):
    vlm = load_vlm(word_arch)
    images = torch.randn(1, 3, 16, 24)
    token_rotations.cache_clear()
    with torch.inference_mode():
        expected = vlm.encode_image(images)
    assert token_rotations.cache_info().currsize == 1
    features = vlm.encode_image(images)
    torch.testing.assert_close(features, expected.clone())
    features.sum().backward()
    assert vlm.visual.blocks[0].attn.q_proj.weight.grad.abs().sum() > 0
    assert token_rotations.cache_info().currsize == 1


def forget_tables() -> None:
    rotary_table.cache_clear()
    token_rotations.cache_clear()
    positions._RESIZED.clear()


class DenseFeatures(nn.Module):
    """What is exported."""

    def __init__(self, vlm: VLM) -> None:
        super().__init__()
        self.vlm = vlm

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.vlm.encode_dense(images)


@pytest.mark.parametrize('strict', [False, True])
def test_a_frozen_tower_can_be_exported(tiny_vlm, family, strict):
    module = DenseFeatures(tiny_vlm(family).requires_grad_(False))
    images = torch.randn(1, 3, 80, 48)
    forget_tables()
    exported = torch.export.export(module, (images,), strict=strict).module()
    expected = module(images)
    assert type(expected) is torch.Tensor
    torch.testing.assert_close(exported(images), expected)


def test_fake_tensors_are_not_kept_for_real_ones(tiny_vlm, family):
    vlm, images = tiny_vlm(family).requires_grad_(False), torch.randn(1, 3, 80, 48)
    expected = vlm.encode_dense(images)
    for was_made_before in (False, True):
        if not was_made_before:
            forget_tables()
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            assert vlm.encode_dense(mode.from_tensor(images)).shape == expected.shape
        assert torch.equal(vlm.encode_dense(images), expected)


def test_a_compiled_program_takes_the_table_that_was_made_outside(monkeypatch):
    table = nn.Parameter(torch.randn(1, 10, 4), requires_grad=False)
    expected = resize_position_embedding(table, (5, 2), (3, 3))
    monkeypatch.setattr(positions, '_resample', lambda *args: pytest.fail('resampled'))
    compiled = torch.compile(lambda: resize_position_embedding(table, (5, 2), (3, 3)) + 1, backend='eager')
    assert torch.equal(compiled(), expected + 1)


@pytest.mark.parametrize('make', [rotary_table, token_rotations])
def test_tables_break_no_graph(make):
    compiled = torch.compile(lambda x: x * make((3, 5), 16, 4, CPU)[0], backend='eager', fullgraph=True)
    torch.testing.assert_close(compiled(torch.ones(())), make((3, 5), 16, 4, CPU)[0])
