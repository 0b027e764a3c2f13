"""Resamplers of token maps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from densevlm_mm.det import TokenPyramid

WIDTH = 8


@pytest.fixture
def maps() -> list[torch.Tensor]:
    return list(torch.randn(4, 2, WIDTH, 6, 10))


def test_every_level_is_what_its_layers_say(maps):
    pyramid = TokenPyramid(WIDTH, norm_cfg={'type': 'BN'}).eval()
    up = pyramid.levels[0]
    nn.init.normal_(up[1].weight)
    nn.init.normal_(up[1].bias)
    levels = pyramid(maps)
    first = F.conv_transpose2d(maps[0], up[0].weight, up[0].bias, stride=2)
    scale = up[1].weight / (up[1].running_var + up[1].eps).sqrt()
    first = F.gelu((first - up[1].running_mean[:, None, None]) * scale[:, None, None] + up[1].bias[:, None, None])
    torch.testing.assert_close(levels[0], F.conv_transpose2d(first, up[3].weight, up[3].bias, stride=2))
    doubled = torch.einsum('bchw,cdij->bdhiwj', maps[1], pyramid.levels[1].weight).reshape(2, WIDTH, 12, 20)
    torch.testing.assert_close(levels[1], doubled + pyramid.levels[1].bias[:, None, None])
    assert torch.equal(levels[2], maps[2])
    torch.testing.assert_close(levels[3], maps[3].reshape(2, WIDTH, 3, 2, 5, 2).amax((3, 5)))


def test_levels_may_differ_in_width_and_number(maps):
    pyramid = TokenPyramid([4, 8], scales=[2, 0.5], norm_cfg={'type': 'BN'})
    levels = pyramid([torch.randn(1, 4, 5, 5), torch.randn(1, 8, 5, 5)])
    assert [tuple(level.shape) for level in levels] == [(1, 4, 10, 10), (1, 8, 2, 2)]
    with pytest.raises(ValueError, match='out_indices'):
        pyramid(maps)


def test_as_many_parameters_as_f_vit_says():
    """7.1 million at width 768, 12.6 million at 1024."""
    with torch.device('meta'):
        counts = [sum(p.numel() for p in TokenPyramid(width).parameters()) for width in (768, 1024)]
    assert [round(count / 1e6, 1) for count in counts] == [7.1, 12.6]


@pytest.mark.parametrize(('channels', 'scales'), [(8, [4, 3]), ([8, 8], [4, 2, 1])])
def test_what_does_not_fit_is_refused(channels, scales):
    with pytest.raises(ValueError, match=r'scales?'):
        TokenPyramid(channels, scales=scales)


def test_synchronised_norms_run_in_one_process(maps):
    pyramid = TokenPyramid(WIDTH, norm_cfg={'type': 'SyncBN'}).train()
    assert isinstance(pyramid.levels[0][1], nn.SyncBatchNorm)
    assert pyramid(maps)[0].shape == (2, WIDTH, 24, 40)
