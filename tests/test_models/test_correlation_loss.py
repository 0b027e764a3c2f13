"""The context term against a plain formula in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from densevlm_mm.models import CorrelationLoss


def maps(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 5, 3, 2, generator=generator), torch.randn(2, 7, 3, 2, generator=generator)


def plain_formula(features: Tensor, targets: Tensor) -> float:
    total = 0.0
    for maps_of_image in zip(features.double(), targets.double(), strict=True):
        first, second = ([v / v.norm() for v in m.flatten(1).T] for m in maps_of_image)
        total += sum(
            float(first[i] @ first[j] - second[i] @ second[j]) ** 2 for i in range(6) for j in range(6)
        )  # fmt: skip
    return total / (2 * 6 * 6)


@given(seed=st.integers(0, 1000), weight=st.floats(0, 3))
def test_value_is_the_plain_formula(seed, weight):
    features, targets = maps(seed)
    assert CorrelationLoss(weight)(features, targets).item() == pytest.approx(
        weight * plain_formula(features, targets), rel=1e-5
    )


def test_a_turned_space_has_the_same_correlations():
    features, _ = maps()
    rotation = torch.linalg.qr(torch.randn(5, 5))[0]
    turned = torch.einsum('cd,bdhw->bchw', rotation, features)
    assert CorrelationLoss(1.0)(turned, 3 * features).item() == pytest.approx(0, abs=1e-10)


def test_no_gradient_reaches_the_targets():
    features, targets = (tensor.requires_grad_() for tensor in maps())
    CorrelationLoss()(features, targets).backward()
    assert features.grad.any() and targets.grad is None


def test_grids_must_be_equal():
    with pytest.raises(ValueError, match=r'grids differ: \(3, 2\) and \(2, 3\) tokens'):
        CorrelationLoss()(maps()[0], maps()[1].transpose(2, 3))
