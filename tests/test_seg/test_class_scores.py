"""Labels against the definition, pixel by pixel: synonyms, background, small classes; and that tiles change nothing."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from densevlm_mm.seg import LabelRule, class_scores, label_map
from densevlm_mm.seg.class_scores import resized_maps, vocabulary_meta
from densevlm_mm.seg.windows import resize_weights
from densevlm_mm.vlm import build_vocabulary

WITH_BACKGROUND = {'things': ['car'], 'stuff': ['background', 'sky'], 'synonyms': {'car': ['car', 'boat']}}


def plain_labels(scores: Tensor, rule: LabelRule) -> list[int]:
    """Labels of scores ``(P, N)``, one class at a time."""
    labels = []
    for pixel in scores.T.tolist():
        of_class = {}
        for value, index in zip(pixel, rule.classes, strict=True):
            of_class[index] = max(value, of_class.get(index, -1.0))
        best = max(of_class, key=of_class.get)
        labels.append(rule.background if rule.threshold and of_class[best] < rule.threshold else best)
    return labels


def large_classes(labels: list[int], rule: LabelRule) -> set[int]:
    foreground = [label for label in labels if label != rule.background]
    return {rule.background} | {i for i in set(rule.classes) if foreground.count(i) >= rule.area_thd * len(foreground)}


rules = st.builds(
    LabelRule,
    classes=st.sampled_from([(0, 1, 2), (0, 0, 1, 2, 2, 2), (1, 0, 2, 1)]),
    background=st.integers(0, 2),
    threshold=st.sampled_from([0.0, 0.2, 0.5]),
)


@given(rule=rules, seed=st.integers(0, 100))
def test_labels_are_those_of_the_definition(rule, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = (4 * torch.randn(len(rule.classes), 3, 5, generator=generator)).softmax(0)
    labels = rule.labels(scores)
    assert labels.shape == (3, 5)
    assert labels.flatten().tolist() == plain_labels(scores.flatten(1), rule)


@pytest.mark.parametrize('num_classes', [1, 255, 256, 257, 459, 847])
def test_every_class_can_win(num_classes):
    scores = torch.eye(num_classes)
    assert LabelRule(classes=tuple(range(num_classes))).labels(scores).tolist() == list(range(num_classes))


def test_one_class_is_everywhere():
    assert LabelRule(classes=(0, 0)).labels(torch.full((2, 4), 0.01)).tolist() == [0] * 4


def test_rule_of_a_vocabulary():
    rule = LabelRule.of(build_vocabulary(WITH_BACKGROUND), threshold=0.3)
    assert (rule.classes, rule.background) == ((0, 0, 1, 2), 1)
    words = build_vocabulary({**WITH_BACKGROUND, 'background': ['grass', 'wood']})
    assert LabelRule.of(words).classes == (0, 0, 1, 1, 2)
    assert LabelRule.of(build_vocabulary(['car', 'sky'])).background is None


@pytest.mark.parametrize('name', ['threshold', 'area_thd'])
def test_pixels_without_a_class_need_a_background(name):
    with pytest.raises(ValueError, match=f"{name}=0.1 leaves pixels without a class.*none named 'background'"):
        LabelRule.of(build_vocabulary(['car', 'sky']), **{name: 0.1})


def test_background_by_threshold_needs_one():
    vocabulary = build_vocabulary({**WITH_BACKGROUND, 'background': 'threshold'})
    with pytest.raises(ValueError, match='set the threshold'):
        LabelRule.of(vocabulary)
    assert LabelRule.of(vocabulary, threshold=0.1).threshold == 0.1


@pytest.mark.parametrize('value', [-0.1, 1.0, math.nan])
@pytest.mark.parametrize('name', ['threshold', 'area_thd'])
def test_thresholds_are_shares(name, value):
    with pytest.raises(ValueError, match=f'{name} must be in'):
        LabelRule(classes=(0, 1), background=0, **{name: value})


@settings(max_examples=40)
@given(rule=rules, area=st.sampled_from([0.0, 0.2, 0.4]), seed=st.integers(0, 100), tile=st.sampled_from([1, 16, 64]))
def test_label_map_is_the_same_in_tiles(rule, area, seed, tile):
    rule = LabelRule(classes=rule.classes, background=rule.background, threshold=rule.threshold, area_thd=area)
    queries = len(rule.classes)
    maps = torch.randn(queries, 4, 5, generator=torch.Generator().manual_seed(seed))
    rows, columns = resize_weights(4, 9), resize_weights(5, 11)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(class_scores, '_SCORES_AT_ONCE', queries * tile)
        patch.setattr(class_scores, '_SMALLEST_TILE', 1)
        labels = label_map(maps, rule, rows=rows, columns=columns, score=lambda values: (2 * values).softmax(0))
    scores = (2 * torch.einsum('ya,pab,xb->pyx', rows, maps, columns)).softmax(0).flatten(1)
    if area:
        kept = large_classes(plain_labels(scores, LabelRule(classes=rule.classes)), rule)
        scores = scores * torch.tensor([float(index in kept) for index in rule.classes])[:, None]
    assert labels.shape == (9, 11)
    assert labels.flatten().tolist() == plain_labels(scores, rule)


def test_a_small_class_leaves_its_pixels_to_the_next():
    maps = torch.tensor([[0.6, 0.6, 0.6, 0.1], [0.3, 0.3, 0.3, 0.2], [0.1, 0.1, 0.1, 0.7]])[:, None]
    whole = {'rows': torch.eye(1), 'columns': torch.eye(4)}
    assert label_map(maps, LabelRule(classes=(0, 1, 2), background=1), **whole).tolist() == [[0, 0, 0, 2]]
    rule = LabelRule(classes=(0, 1, 2), background=1, area_thd=0.3)
    assert label_map(maps, rule, **whole).tolist() == [[0, 0, 0, 1]]


def test_scores_of_all_pixels_never_exist_at_once(largest_tensor, monkeypatch):
    monkeypatch.setattr(class_scores, '_SCORES_AT_ONCE', 2**14)
    maps = torch.randn(100, 4, 6)
    with largest_tensor as largest:
        label_map(
            maps,
            LabelRule(classes=tuple(range(100)), background=0, area_thd=0.001),
            rows=resize_weights(4, 60),
            columns=resize_weights(6, 90),
            score=lambda values: values.softmax(0),
        )
    assert 100 * 16 * 16 <= largest.numel <= 100 * 16 * 16 * 2  # of 540 000


def test_resized_maps_are_whole_under_autocast():
    maps, rows, columns = torch.randn(3, 4, 5), resize_weights(4, 7), resize_weights(5, 9)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        found = resized_maps(maps, rows, columns)
    torch.testing.assert_close(found, resized_maps(maps, rows, columns), rtol=0, atol=0)
    assert found.dtype == torch.float32


def test_names_and_colours_are_the_vocabularys():
    meta = vocabulary_meta(build_vocabulary('ade20k'))
    assert meta['classes'] == build_vocabulary('ade20k').names
    assert len(meta['palette']) == 150
    assert all(isinstance(value, int) and 0 <= value <= 255 for colour in meta['palette'] for value in colour)
