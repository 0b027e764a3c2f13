"""Windows of grids of any size."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from densevlm_mm.seg.cat_seg.shifted_windows import ShiftedWindows

GRIDS = st.tuples(st.integers(1, 9), st.integers(1, 9))


@given(grid=GRIDS, window=st.integers(1, 6), shifted=st.booleans())
def test_join_undoes_split(grid, window, shifted):
    windows = ShiftedWindows.of(grid, window, window // 2 if shifted else 0)
    tokens = torch.randn(2, *grid, 3)
    assert torch.equal(windows.join(windows.split(tokens)), tokens)


@given(grid=GRIDS, window=st.integers(1, 6), shifted=st.booleans())
def test_tokens_see_their_neighbours_in_the_window_and_nothing_else(grid, window, shifted):
    windows = ShiftedWindows.of(grid, window, window // 2 if shifted else 0)
    places = torch.stack(torch.meshgrid(*map(torch.arange, grid), indexing='ij'), -1) + 1.0
    found = windows.split(places)
    mask = windows.mask(torch.device('cpu'))
    mask = torch.ones(*found.shape[:2], found.shape[1], dtype=torch.bool) if mask is None else mask
    assert mask.diagonal(dim1=1, dim2=2).all()
    real = found[..., 0] > 0  # zero is padding
    assert not (mask & (real[:, :, None] != real[:, None, :])).any()
    apart = (found[:, :, None] - found[:, None, :]).abs()
    seen = mask & real[:, :, None] & real[:, None, :]
    assert (apart[seen] < window).all()
    # in a window as the plane is cut, where nothing wraps around
    cells = [(found[..., i] - 1 - windows.shift[i]) // windows.size[i] for i in (0, 1)]
    same = torch.stack([cell[:, :, None] == cell[:, None, :] for cell in cells]).all(0)
    assert torch.equal(seen, same & real[:, :, None] & real[:, None, :])


def test_a_grid_that_the_windows_divide_needs_no_mask():
    assert ShiftedWindows.of((24, 12), 12, 0).mask(torch.device('cpu')) is None
    assert ShiftedWindows.of((24, 24), 12, 6).mask(torch.device('cpu')).shape == (4, 144, 144)
    assert ShiftedWindows.of((8, 8), 12, 6) == ShiftedWindows((8, 8), (8, 8), (0, 0))
