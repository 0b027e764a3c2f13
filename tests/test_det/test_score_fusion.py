"""Fused scores against powers and products of probabilities in float64, and the laws that they obey."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from densevlm_mm.det import ScoreFusion
from densevlm_mm.registry import MODELS
from densevlm_mm.vlm import Vocabulary

SPLIT = ('base', 'novel', 'base', None, 'novel')
shares = st.floats(0, 1)
seeds = st.integers(0, 1000)


def build(
    alpha: float = 0.1, beta: float = 0.8, split: tuple[str | None, ...] = SPLIT, temperature: float = 30.0, **options
) -> ScoreFusion:
    fusion = ScoreFusion(alpha, beta, temperature=temperature, **options)
    names = tuple(f'class {i}' for i in range(len(split)))
    fusion.set_vocabulary(Vocabulary(names, (True,) * len(split), split=split))
    return fusion


def regions(count: int = 4, classes: int = len(SPLIT), seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, cosines and objectness."""
    random = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(count, classes + 1, generator=random)
    cosines = 2 * torch.rand(count, classes + 1, generator=random) - 1
    return logits, cosines, torch.rand(count, generator=random)


def softmax(row: np.ndarray) -> np.ndarray:
    powers = [math.exp(value - row.max()) for value in row]
    return np.array(powers) / sum(powers)


def plain_scores(logits: Tensor, cosines: Tensor, objectness: Tensor, fusion: ScoreFusion, split: tuple) -> np.ndarray:
    """One region and one class at a time."""
    scores = np.zeros(logits.shape)
    for i in range(len(logits)):
        detector = softmax(logits[i].double().numpy())
        vlm = softmax(fusion.temperature * cosines[i].double().numpy())
        for c in range(len(split) + 1):
            if c == len(split):
                share = 0.0 if fusion.background == 'detector' else fusion.alpha
            else:
                share = fusion.beta if split[c] == 'novel' else fusion.alpha
            scores[i, c] = detector[c] ** (1 - share) * vlm[c] ** share
        if fusion.renormalize:
            scores[i] /= scores[i].sum()
        scores[i] *= float(objectness[i]) ** fusion.objectness_power
    return scores


@pytest.mark.parametrize('renormalize', [False, True])
@pytest.mark.parametrize('background', ['fused', 'detector'])
@pytest.mark.parametrize('objectness_power', [0.0, 3.0])
@pytest.mark.parametrize(('alpha', 'beta'), [(0.1, 0.8), (0.35, 0.65), (0.0, 0.5), (0.2, 0.2), (1.0, 0.0)])
def test_is_the_plain_formula(alpha, beta, renormalize, background, objectness_power):
    options = {'renormalize': renormalize, 'background': background, 'objectness_power': objectness_power}
    fusion, inputs = build(alpha, beta, **options), regions()
    scores = fusion(*inputs)
    assert scores.dtype == torch.float32
    np.testing.assert_allclose(scores.exp(), plain_scores(*inputs, fusion, SPLIT), rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize('split', [
    ('base',), ('novel',), (None, None, None), tuple('novel' if i % 25 < 7 else 'base' for i in range(1203)),
], ids=['one base', 'one novel', 'no split', 'LVIS'])  # fmt: skip
def test_vocabularies(split):
    fusion, inputs = build(split=split), regions(3, len(split))
    np.testing.assert_allclose(fusion(*inputs).exp(), plain_scores(*inputs, fusion, split), rtol=1e-3, atol=1e-12)


@settings(max_examples=40)
@given(alpha=shares, beta=shares, seed=seeds, background=st.sampled_from(['fused', 'detector']))
def test_renormalised_scores_sum_to_one_and_keep_their_order(alpha, beta, seed, background):
    inputs = regions(seed=seed)
    scores = build(alpha, beta, background=background)(*inputs)
    renormalised = build(alpha, beta, background=background, renormalize=True)(*inputs)
    torch.testing.assert_close(renormalised.exp().sum(1), torch.ones(4))
    # a row is moved as a whole
    shifts = renormalised - scores
    torch.testing.assert_close(shifts, shifts[:, :1].expand_as(shifts), rtol=1e-4, atol=1e-4)


@settings(max_examples=40)
@given(alpha=shares, beta=shares, seed=seeds)
def test_what_both_put_first_stays_first(alpha, beta, seed):
    """Of two classes of the same split, that which is ahead with detector and VLM is ahead."""
    logits, cosines, _ = regions(8, seed=seed)
    scores = build(alpha, beta)(logits, cosines)
    for first, second in [(0, 2), (2, 0), (0, 3), (3, 0), (1, 4), (4, 1)]:
        agreed = (logits[:, first] >= logits[:, second]) & (cosines[:, first] >= cosines[:, second])
        assert (scores[agreed, first] >= scores[agreed, second] - 1e-4).all()


@settings(max_examples=20)
@given(seed=seeds)
def test_shares_of_0_and_1_leave_one_judge_alone(seed):
    logits, cosines, _ = regions(seed=seed)
    torch.testing.assert_close(build(0, 0)(logits, cosines), logits.log_softmax(-1))
    torch.testing.assert_close(build(1, 1)(logits, cosines), (30.0 * cosines).log_softmax(-1))
    torch.testing.assert_close(build(0, 1)(logits, cosines)[:, 1], (30.0 * cosines).log_softmax(-1)[:, 1])


@pytest.mark.parametrize('renormalize', [False, True])
def test_without_cosines_the_detector_is_alone(renormalize):
    logits, _, objectness = regions()
    torch.testing.assert_close(build(renormalize=renormalize)(logits, None), logits.log_softmax(-1))
    with_objectness = build(renormalize=renormalize, objectness_power=2.0)(logits, None, objectness)
    torch.testing.assert_close(with_objectness.exp(), logits.softmax(-1) * objectness[:, None] ** 2)


def test_background_of_the_detector_is_not_touched():
    logits, cosines, _ = regions()
    scores = build(0.5, 0.5, background='detector')(logits, cosines)
    torch.testing.assert_close(scores[:, -1], logits.log_softmax(-1)[:, -1])
    assert not torch.allclose(build(0.5, 0.5)(logits, cosines)[:, -1], scores[:, -1], atol=0.01)


def test_columns_switched_off_and_extreme_values_give_no_nan():
    logits, cosines, objectness = regions()
    logits[0, 1] = cosines[1, 2] = -torch.inf
    logits[2] = torch.tensor([1e30, -1e30, 0, 1e30, 5, -5])
    objectness[3] = 0
    for alpha, beta in ((0, 0.5), (0.5, 0), (0, 0), (1, 1)):
        for renormalize in (False, True):
            fusion = build(alpha, beta, renormalize=renormalize, objectness_power=3.0)
            scores = fusion(logits, cosines, objectness)
            assert scores.isfinite().all() and (scores <= 1e-6).all()
            assert not scores[3].exp().any()
    assert build(0.5, 0.5)(logits, cosines).exp()[0, 1] == 0


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_is_fp32_under_autocast(dtype):
    logits, cosines, _ = regions()
    expected = build(temperature=100.0)(logits, cosines)
    with torch.autocast('cpu', dtype=dtype):
        scores = build(temperature=100.0)(logits, cosines)
        half = build(temperature=100.0)(logits.to(dtype), cosines.to(dtype))
    assert half.dtype == torch.float32
    assert torch.equal(scores, expected)
    torch.testing.assert_close(half, build(temperature=100.0)(logits.to(dtype).float(), cosines.to(dtype).float()))
    assert expected.min() < math.log(6e-8)  # what a half would have rounded to 0


def test_no_region():
    assert build(renormalize=True)(torch.zeros(0, 6), torch.zeros(0, 6)).shape == (0, 6)


def test_inputs_are_left_alone():
    inputs = regions()
    before = [tensor.clone() for tensor in inputs]
    build(objectness_power=1.0, renormalize=True)(*inputs)
    assert all(torch.equal(tensor, kept) for tensor, kept in zip(inputs, before, strict=True))


def test_shares_may_be_changed():
    """As a sweep over them does."""
    fusion, inputs = build(), regions()
    fusion.alpha, fusion.beta = 0.35, 0.65
    assert torch.equal(fusion(*inputs), build(0.35, 0.65)(*inputs))


@pytest.mark.parametrize(('options', 'message'), [
    ({'alpha': 1.1}, 'alpha is the share of the VLM and must be in 0..1, got 1.1'),
    ({'beta': -0.1}, 'beta .* in 0..1, got -0.1'),
    ({'alpha': math.nan}, 'alpha .* got nan'),
    ({'temperature': 0}, 'temperature must be positive'),
    ({'background': 'text'}, "background must be 'fused' or 'detector', got 'text'"),
    ({'objectness_power': -1.0}, 'objectness_power must not be negative'),
])  # fmt: skip
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        ScoreFusion(**{'alpha': 0.1, 'beta': 0.8, 'temperature': 75.0, **options})


def test_inputs_are_checked():
    logits, cosines, objectness = regions()
    with pytest.raises(ValueError, match='6 logits, but the vocabulary has 2 classes and a background'):
        build(split=('base', 'novel'))(logits, cosines)
    with pytest.raises(ValueError, match='6 logits, but the vocabulary has 0 classes'):
        ScoreFusion(0.1, 0.8, temperature=75.0)(logits, cosines)
    with pytest.raises(ValueError, match=r'logits are \(4, 6\), but cosines \(4, 5\)'):
        build()(logits, cosines[:, :-1])
    for wrong in (None, objectness[:3]):
        with pytest.raises(ValueError, match='needs the objectness of each of 4 regions'):
            build(objectness_power=3.0)(logits, cosines, wrong)


def test_registered_moves_along_and_is_not_saved():
    fusion = MODELS.build({'type': 'densevlm_mm.ScoreFusion', 'alpha': 0.1, 'beta': 0.8, 'temperature': 75.0})
    fusion.set_vocabulary(Vocabulary(('car', 'tree'), (True, True), split=('base', 'novel')))
    assert not fusion.state_dict()
    fusion.to('meta').set_vocabulary(Vocabulary(('car',), (True,)))
    assert fusion.is_novel.is_meta and len(fusion.is_novel) == 1
    assert 'alpha=0.1, beta=0.8, temperature=75.0' in repr(fusion)
