from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from densevlm_mm.evaluation import region_accuracy
from densevlm_mm.evaluation.region_accuracy import RegionScores, class_mean

# Four things, then three stuff classes.
CLASS_IS_THING = np.array([True] * 4 + [False] * 3)
KEYS = {'thing.macc1', 'thing.macc5', 'stuff.macc1', 'stuff.macc5', 'bias', 'reverse_bias'}


def draw(seed: int, count: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(7), generator.integers(0, 7, count)])
    logits = generator.normal(size=(len(labels), 7))
    logits[np.arange(len(labels)), labels] += 1
    return logits, labels, CLASS_IS_THING[labels]


def slow_accuracy(logits, labels, is_thing) -> dict[str, float]:
    """The definition, loop by loop."""
    shares = {}
    for group, wanted in (('thing', True), ('stuff', False)):
        for k in (1, 5):
            per_class = []
            for label in sorted({y for y, t in zip(labels, is_thing, strict=True) if t == wanted}):
                rows = [row for row, y in zip(logits, labels, strict=True) if y == label]
                per_class.append(np.mean([label in np.argsort(-row)[:k] for row in rows]))
            shares[f'{group}.macc{k}'] = np.mean(per_class)
    top1 = CLASS_IS_THING[logits.argmax(1)]
    return shares | {'bias': top1[~is_thing].mean(), 'reverse_bias': (~top1[is_thing]).mean()}


@pytest.mark.parity
@pytest.mark.parametrize('source', ['rois', 'crops', 'maskpool'])
def test_accuracy_is_that_of_the_reference(data_dir, source):
    """The reference rounds the accuracy of each class to half precision."""
    expected = json.loads((data_dir / 'parity' / 'region_accuracy.json').read_text())
    with np.load(data_dir / 'parity' / 'region_accuracy.npz') as data:
        shares = region_accuracy(data[f'{source}_logits'], data['labels'], data['is_thing'])
    assert set(shares) == KEYS
    for key in KEYS - {'bias', 'reverse_bias'}:
        assert shares[key] == pytest.approx(expected[f'{source}.{key}'], abs=5e-4)


@pytest.mark.parity
def test_class_mean_is_that_of_the_reference(data_dir):
    with np.load(data_dir / 'parity' / 'data_eval.npz') as data:
        correct, labels, is_thing = data['macc_correct'], data['macc_labels'], data['macc_is_thing'] > 0
        expected = data['macc_out']
    means = [
        class_mean(hits[members], labels[members])
        for members in (is_thing, ~is_thing)
        for hits in (correct[:, 0], correct.any(axis=1))
    ]
    np.testing.assert_allclose(means, expected, rtol=0, atol=5e-4)


@given(st.integers(0, 10**6))
def test_equals_the_definition(seed):
    regions = draw(seed)
    assert region_accuracy(*regions) == pytest.approx(slow_accuracy(*regions))


@given(st.integers(0, 10**6), st.randoms(use_true_random=False))
def test_order_of_regions_does_not_matter(seed, random):
    logits, labels, is_thing = draw(seed)
    order = list(range(len(labels)))
    random.shuffle(order)
    shuffled = region_accuracy(logits[order], labels[order], is_thing[order])
    assert shuffled == pytest.approx(region_accuracy(logits, labels, is_thing))


@given(st.integers(0, 10**6), st.permutations(range(7)), st.booleans())
def test_order_of_classes_does_not_matter(seed, order, ties):
    """Also where classes are tied."""
    logits, labels, is_thing = draw(seed)
    logits = logits.round() if ties else logits
    renamed = np.argsort(order)[labels]
    assert region_accuracy(logits[:, order], renamed, is_thing) == pytest.approx(
        region_accuracy(logits, labels, is_thing)
    )


@given(st.integers(0, 10**6), st.floats(0.1, 100), st.floats(-5, 5))
def test_scale_and_offset_of_the_logits_do_not_matter(seed, scale, offset):
    logits, labels, is_thing = draw(seed)
    assert region_accuracy(logits * scale + offset, labels, is_thing) == region_accuracy(logits, labels, is_thing)


def test_repeating_every_region_changes_nothing():
    twice = [np.concatenate([part, part]) for part in draw(0)]
    assert region_accuracy(*twice) == pytest.approx(region_accuracy(*draw(0)))


def test_classes_weigh_the_same_however_many_regions_they_have():
    logits = np.eye(3)[[0, 0, 0, 2]]
    shares = region_accuracy(logits, np.array([0, 0, 0, 1]), np.ones(4, bool), topk=(1,))
    assert shares['thing.macc1'] == 0.5


def test_tensors_of_any_precision():
    logits, labels, is_thing = draw(3)
    logits = logits.round(1)
    expected = region_accuracy(logits, labels, is_thing)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        tensor = torch.tensor(logits, dtype=dtype, requires_grad=True)
        shares = region_accuracy(tensor, torch.tensor(labels), torch.tensor(is_thing))
        if dtype == torch.float32:
            assert shares == expected
        assert set(shares) == KEYS


def test_a_tie_is_no_answer():
    """Regions without a token have equal logits for all classes; class 0 must not gain from it."""
    shares = region_accuracy(np.zeros((3, 3)), [0, 1, 2], [True, True, False], topk=(1, 2))
    assert set(shares.values()) == {0.0}
    scores = RegionScores.from_logits(np.array([[1.0, 1.0, 0.0], [0.0, 2.0, 2.0]]), np.array([0, 0]))
    assert scores.ranks.tolist() == [1, 2] and scores.top1.tolist() == [-1, -1]


def test_everything_is_right_with_k_of_all_classes_or_more():
    shares = region_accuracy(draw(0)[0][:3, :3], [0, 1, 2], [True, True, False], topk=(3, 5))
    assert {shares[f'{group}.macc{k}'] for group in ('thing', 'stuff') for k in (3, 5)} == {1.0}


def test_bias_counts_regions_taken_for_the_other_kind():
    top1 = np.array([0, 4, 4, 1, 2, 5, 6, 3])
    labels = np.array([0, 1, 2, 3, 4, 4, 5, 6])
    shares = region_accuracy(np.eye(7)[top1], labels, CLASS_IS_THING[labels])
    assert shares['bias'] == 2 / 4 and shares['reverse_bias'] == 2 / 4


def test_bias_towards_classes_without_regions_needs_their_kind():
    logits, labels, is_thing = np.eye(7)[[1, 0]], [6, 0], [False, True]
    assert region_accuracy(logits, labels, is_thing)['bias'] == 0
    assert region_accuracy(logits, labels, is_thing, class_is_thing=CLASS_IS_THING)['bias'] == 1


@pytest.mark.parametrize('kind', [True, False])
def test_absent_group_has_no_keys(kind):
    shares = region_accuracy(np.eye(3), [0, 1, 2], [kind] * 3)
    present, bias = ('thing', 'reverse_bias') if kind else ('stuff', 'bias')
    assert set(shares) == {f'{present}.macc1', f'{present}.macc5', bias}


NAN = np.array([[0.0, np.nan], [0.0, 1.0]])


@pytest.mark.parametrize(
    'logits, labels, is_thing, message',
    [
        (np.zeros((0, 3)), [], [], 'no region'),
        (np.eye(2), [0], [True, False], 'are expected, got'),
        (np.eye(2), [0, 1], [True], 'are expected, got'),
        (np.zeros(2), [0, 1], [True, False], 'are expected, got'),
        (np.eye(2), [0, 2], [True, False], r'labels \[2\] are out of range for logits of 2'),
        (np.eye(2), [-1, 0], [True, False], r'labels \[-1\] are out of range'),
        (np.eye(2), [0.0, 1.0], [True, False], 'must be integers'),
        (NAN, [0, 1], [True, False], '1 of 2 regions are NaN'),
        (np.eye(2), [1, 1], [True, False], r'classes \[1\] have both'),
    ],
)
def test_bad_input_is_an_error(logits, labels, is_thing, message):
    with pytest.raises(ValueError, match=message):
        region_accuracy(logits, labels, is_thing)


@pytest.mark.parametrize('topk', [(), (0,), (1, -5)])
def test_topk_must_be_positive(topk):
    with pytest.raises(ValueError, match='topk'):
        region_accuracy(*draw(0), topk=topk)


def test_flags_of_classes_must_fit():
    with pytest.raises(ValueError, match='class_is_thing has shape'):
        region_accuracy(*draw(0), class_is_thing=[True])
    with pytest.raises(ValueError, match=r'classes \[0, 1, 2, 3, 4\] have both'):
        region_accuracy(*draw(0), class_is_thing=~CLASS_IS_THING)
