"""What the VLM sees in regions, against torchvision's operators."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align

from densevlm_mm.det.region_features import DenseRegions, LevelsWithRegions, PooledRegions
from densevlm_mm.vlm import VLM

CELL = (14, 14)


@pytest.fixture
def rois() -> Tensor:
    """Of three images, in no order, none of the second; some leave the image, one is empty."""
    corners = torch.rand(40, 2) * torch.tensor([140.0, 98.0]) - 10
    boxes = torch.cat([corners, corners + torch.rand(40, 2) * 80], dim=1)
    boxes[7, 2:] = boxes[7, :2]
    return torch.cat([torch.randint(0, 2, (40, 1)) * 2.0, boxes], dim=1)


def test_dense_regions_are_roi_align_with_one_bin(rois):
    dense = F.normalize(torch.randn(3, 8, 7, 10), dim=1)
    expected = roi_align(dense, rois, 1, 1 / 14, aligned=True).flatten(1)
    torch.testing.assert_close(
        DenseRegions(dense, CELL).encode(rois), F.normalize(expected, dim=-1), atol=1e-5, rtol=1e-4
    )


def test_pooled_regions_are_roi_align_and_the_towers_pooling():
    tower = VLM('RN50').visual.eval()
    features = torch.randn(2, 2048, 4, 5)
    rois = torch.tensor([[0, 3.0, 5, 90, 70], [1, 0, 0, 160, 128], [0, 10, 10, 40, 60]])
    with torch.no_grad():
        found = PooledRegions(features, (32, 32), tower.pool, (7, 7)).encode(rois)
        crops = roi_align(features, rois, (7, 7), 1 / 32, aligned=True)
        expected = torch.cat([tower.trunk.attnpool(crop[None]) for crop in crops])
    torch.testing.assert_close(found, F.normalize(expected, dim=-1), atol=1e-5, rtol=1e-4)


def test_chunks_do_not_show(monkeypatch, rois):
    features = torch.randn(3, 4, 7, 10)

    def pool(crops: Tensor) -> Tensor:
        return crops.flatten(1)

    whole = PooledRegions(features, CELL, pool, (2, 2)).encode(rois)
    monkeypatch.setattr('densevlm_mm.det.region_features._REGIONS_AT_ONCE', 7)
    torch.testing.assert_close(PooledRegions(features, CELL, pool, (2, 2)).encode(rois), whole)


@pytest.mark.parametrize('count', [0, 1])
def test_few_regions(count):
    dense = F.normalize(torch.randn(2, 8, 7, 10), dim=1)
    rois = torch.tensor([[1, 3.0, 5, 90, 70]])[:count]
    assert DenseRegions(dense, CELL).encode(rois).shape == (count, 8)
    assert PooledRegions(dense, CELL, lambda x: x.mean((2, 3)), (2, 2)).encode(rois).shape == (count, 8)


def test_levels_are_a_tuple_for_mmdetection():
    levels = LevelsWithRegions([torch.ones(1), torch.zeros(1)], DenseRegions(torch.ones(1, 2, 3, 3), CELL))
    scored = levels.with_objectness(torch.ones(3))
    assert isinstance(scored, tuple)
    assert levels.objectness is None
    assert scored.regions is levels.regions
    assert [level is other for level, other in zip(scored, levels, strict=True)] == [True, True]
