"""CLIPSelf's loss against a plain formula in float64, and what masking promises."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from densevlm_mm.models import CosineLoss
from densevlm_mm.registry import MODELS


def pairs(rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 5, generator=generator), torch.randn(rows, 5, generator=generator)


def plain_formula(features: Tensor, targets: Tensor) -> float:
    features, targets = features.double(), targets.double()
    return float(sum(1 - f @ t / (f.norm() * t.norm()) for f, t in zip(features, targets, strict=True)) / len(features))


@given(rows=st.integers(1, 12), seed=st.integers(0, 1000), weight=st.floats(0, 3))
def test_value_is_the_plain_formula(rows, seed, weight):
    features, targets = pairs(rows, seed)
    assert CosineLoss(weight)(features, targets).item() == pytest.approx(
        weight * plain_formula(features, targets), rel=1e-5, abs=1e-6
    )


@given(seed=st.integers(0, 1000), factor=st.floats(0.01, 100))
def test_lengths_do_not_matter(seed, factor):
    features, targets = pairs(4, seed)
    expected = CosineLoss()(features, targets)
    torch.testing.assert_close(CosineLoss()(factor * features, targets / factor), expected)
    assert CosineLoss()(factor * features, features).item() == pytest.approx(0, abs=1e-6)


@settings(max_examples=30)
@given(valid=st.lists(st.booleans(), min_size=1, max_size=12), seed=st.integers(0, 1000))
def test_masked_rows_are_as_good_as_absent(valid, seed):
    valid = torch.tensor(valid)
    features, targets = pairs(len(valid), seed)
    features[~valid], targets[~valid] = 0, 0  # padding
    masked, dropped = features.clone().requires_grad_(), features[valid].requires_grad_()
    with_mask, without = CosineLoss()(masked, targets, valid), CosineLoss()(dropped, targets[valid])
    with_mask.backward()
    without.backward()
    torch.testing.assert_close(with_mask, without)
    torch.testing.assert_close(masked.grad[valid], dropped.grad)
    assert not masked.grad[~valid].any()


def test_no_gradient_reaches_the_targets():
    features, targets = (tensor.requires_grad_() for tensor in pairs(3))
    CosineLoss()(features, targets).backward()
    assert features.grad.any() and targets.grad is None


def test_half_precision_is_compared_in_fp32():
    features, targets = (tensor.bfloat16() for tensor in pairs(3))
    expected = CosineLoss()(features.float(), targets.float())
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert CosineLoss()(features, targets) == expected


def test_spaces_of_different_width():
    with pytest.raises(ValueError, match=r'features are \(3, 5\) but their targets \(3, 4\)'):
        CosineLoss()(pairs(3)[0], torch.ones(3, 4))


def test_registered():
    assert MODELS.build({'type': 'densevlm_mm.CosineLoss', 'loss_weight': 2.0}).loss_weight == 2
