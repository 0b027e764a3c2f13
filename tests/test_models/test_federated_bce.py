"""RegionCLIP's loss: the sampled set of nouns, and the value against a plain formula in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from densevlm_mm.models import FederatedBCELoss
from densevlm_mm.models.losses.federated_bce import federated_set
from densevlm_mm.registry import MODELS


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def batch(rows: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return 5 * torch.randn(rows, classes, generator=random), torch.randint(classes, (rows,), generator=random)


@given(
    present=st.lists(st.booleans(), min_size=1, max_size=40), num_sampled=st.integers(0, 50), seed=st.integers(0, 1000)
)
def test_set_holds_what_is_present_and_is_filled_from_the_rest(present, num_sampled, seed):
    present = np.array(present)
    found = federated_set(present, num_sampled, generator(seed))
    assert set(np.flatnonzero(present)) <= set(found.tolist())
    assert len(found) == len(set(found.tolist())) == max(present.sum(), min(num_sampled, len(present)))
    assert (np.diff(found) > 0).all() and found.min(initial=0) >= 0 and found.max(initial=0) < len(present)
    assert (found == federated_set(present, num_sampled, generator(seed))).all()


def test_absent_classes_are_equally_likely():
    present, random = np.arange(10) < 2, generator()
    counts = np.bincount(np.concatenate([federated_set(present, 5, random) for _ in range(4000)]), minlength=10)
    assert (counts[:2] == 4000).all()
    expected, deviation = 4000 * 3 / 8, math.sqrt(4000 * 3 / 8 * 5 / 8)
    assert (abs(counts[2:] - expected) < 4 * deviation).all()


@settings(max_examples=40)
@given(rows=st.integers(1, 8), num_sampled=st.integers(0, 12), seed=st.integers(0, 1000))
def test_value_is_the_plain_formula(rows, num_sampled, seed):
    logits, labels = batch(rows, 9, seed)
    present = np.isin(np.arange(9), labels)
    classes = federated_set(present, num_sampled, generator(seed))
    expected = 0.0
    for row, label in zip(logits.double(), labels, strict=True):
        for noun in classes:
            probability = row[noun].sigmoid()
            expected -= (probability if noun == label else 1 - probability).log()
    found = FederatedBCELoss(num_sampled, loss_weight=0.5)(logits, labels, generator=generator(seed))
    assert found.item() == pytest.approx(0.5 * float(expected) / rows, rel=1e-5)


@settings(max_examples=30)
@given(valid=st.lists(st.booleans(), min_size=1, max_size=8), seed=st.integers(0, 1000))
def test_masked_rows_are_as_good_as_absent(valid, seed):
    valid = torch.tensor(valid)
    logits, labels = batch(len(valid), 9, seed)
    masked, dropped = logits.clone().requires_grad_(), logits[valid].requires_grad_()
    with_mask = FederatedBCELoss(4)(masked, labels, valid, generator=generator(seed))
    without = FederatedBCELoss(4)(dropped, labels[valid], generator=generator(seed))
    with_mask.backward()
    without.backward()
    torch.testing.assert_close(with_mask, without)
    torch.testing.assert_close(masked.grad[valid], dropped.grad)
    assert not masked.grad[~valid].any()


def test_classes_outside_the_set_get_no_gradient():
    logits, labels = batch(3, 30)
    logits.requires_grad_()
    FederatedBCELoss(10)(logits, labels, generator=generator()).backward()
    assert logits.grad.any(dim=0).sum() == 10


@pytest.mark.parametrize('label', [-1, 9])
def test_label_that_is_no_noun(label):
    logits, labels = batch(3, 9)
    labels[1] = label
    with pytest.raises(ValueError, match='there are 9 nouns: model and data set must read them from the same file'):
        FederatedBCELoss()(logits, labels, generator=generator())


def test_registered():
    assert MODELS.build({'type': 'densevlm_mm.FederatedBCELoss'}).num_sampled == 100
    with pytest.raises(ValueError, match='num_sampled must not be negative'):
        FederatedBCELoss(-1)
