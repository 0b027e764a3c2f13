"""OVIoUMetric: both conventions, against plain loops, a sum by hand and mmseg's IoUMetric."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmseg.evaluation import IoUMetric

from densevlm_mm.registry import METRICS
from densevlm_mm.seg import OVIoUMetric
from densevlm_mm.seg.iou_metric import count_image, sum_images

Pair = tuple[np.ndarray, np.ndarray]


def make_metric(num_classes: int, meta: dict | None = None, **options: object) -> OVIoUMetric:
    metric = OVIoUMetric(**options)
    metric.dataset_meta = {'classes': [f'c{i}' for i in range(num_classes)], **(meta or {})}
    return metric


def sample(predicted: np.ndarray, truth: np.ndarray, path: str = 'a.jpg') -> dict:
    maps = {'pred_sem_seg': predicted, 'gt_sem_seg': truth}
    return {'img_path': path} | {key: {'data': torch.as_tensor(np.array(value))[None]} for key, value in maps.items()}


def evaluate(metric: OVIoUMetric | IoUMetric, pairs: list[Pair]) -> dict[str, float]:
    metric.process({}, [sample(*pair) for pair in pairs])
    return metric.evaluate(len(pairs))


@st.composite
def data_sets(draw) -> tuple[int, list[Pair]]:
    """A number of classes and some images; not every class occurs, and 255 is ignored."""
    num_classes = draw(st.integers(2, 7))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    used = draw(st.integers(1, num_classes))
    pairs = []
    for size in draw(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=4)):
        truth = rng.integers(0, used, size)
        truth[rng.random(size) < 0.2] = 255
        pairs.append((rng.integers(0, num_classes, size), truth))
    pairs[0][1][0, 0] = 0  # something counts
    return num_classes, pairs


def plain_loops(num_classes: int, pairs: list[Pair]) -> dict[str, float]:
    found = right = 0
    shares, present, accuracies = {}, [], []
    pixels = [(p, t) for pair in pairs for p, t in zip(pair[0].ravel(), pair[1].ravel(), strict=True) if t != 255]
    for label in range(num_classes):
        both = sum(p == t == label for p, t in pixels)
        either = sum(label in (p, t) for p, t in pixels)
        truth = sum(t == label for _, t in pixels)
        found, right = found + truth, right + both
        if either:
            shares[label] = 100 * both / either
        if truth:
            present.append(label)
            accuracies.append(100 * both / truth)
    return {
        'mIoU': sum(shares.values()) / len(shares),
        'mIoU_gt': sum(shares[label] for label in present) / len(present),
        'mAcc': sum(accuracies) / len(accuracies),
        'aAcc': 100 * right / found,
    }


class TestFigures:
    @settings(max_examples=60)
    @given(data_sets())
    def test_are_those_of_plain_loops(self, case):
        assert evaluate(make_metric(case[0]), case[1]) == pytest.approx(plain_loops(*case), abs=1e-9)

    @settings(max_examples=40)
    @given(data_sets())
    def test_are_mmsegs(self, case):
        theirs = IoUMetric(prefix='')
        theirs.dataset_meta = {'classes': [f'c{i}' for i in range(case[0])]}
        expected = evaluate(theirs, case[1])
        found = evaluate(make_metric(case[0]), case[1])
        assert {key: found[key] for key in expected} == pytest.approx(expected, abs=0.0051)  # rounded to two digits

    def test_of_a_class_that_is_predicted_but_absent(self):
        # a: 2 of 3 found, none wrong; b: all 2 found, one wrong; c: absent, predicted once where nothing counts;
        # d: absent, predicted once; e: absent, never predicted
        truth = np.array([[0, 0, 0, 1, 1, 255]])
        predicted = np.array([[0, 0, 3, 1, 1, 2]])
        metrics = evaluate(make_metric(5), [(predicted, truth)])
        assert metrics['mIoU'] == pytest.approx(100 * (2 / 3 + 1 + 0) / 3)
        assert metrics['mIoU_gt'] == pytest.approx(100 * (2 / 3 + 1) / 2)
        assert metrics['mAcc'] == pytest.approx(100 * (2 / 3 + 1) / 2) and metrics['aAcc'] == pytest.approx(80)

    @pytest.mark.parametrize('num_classes', [1, 255, 257, 459, 847])
    def test_of_any_number_of_classes(self, num_classes):
        truth = np.arange(num_classes, dtype=np.int64)[None]
        metrics = evaluate(make_metric(num_classes, ignore_index=65535), [(truth, truth)])
        assert set(metrics.values()) == {100.0}
        wrong = np.where(truth == num_classes - 1, 0, truth)
        metrics = evaluate(make_metric(num_classes, ignore_index=65535), [(wrong, truth)])
        assert metrics['aAcc'] == pytest.approx(100 * (num_classes - 1) / num_classes if num_classes > 1 else 100)

    def test_of_more_pixels_than_fp32_can_count(self):
        metric = make_metric(2)
        metric.process({}, [sample(np.array([[0, 1]]), np.array([[0, 0]]))])
        (entry,) = metric.results
        many = [{**entry, 'intersection': [2**24, 0], 'predicted': [2**24, 1], 'truth': [2**24 + 1, 0]}]
        assert metric.compute_metrics(many)['mIoU_gt'] == 100 * 2**24 / (2**24 + 1)

    def test_without_anything_that_counts_there_are_none(self):
        assert evaluate(make_metric(2), [(np.zeros((1, 1), int), np.full((1, 1), 255))]) == {}


class TestGroups:
    META = {'is_thing': [True, False, True], 'base_classes': ['c0', 'c1'], 'novel_classes': ['c2']}

    def test_have_the_figures_of_their_classes_alone(self):
        truth, predicted = np.array([[0, 0, 1, 1, 2, 2]]), np.array([[0, 1, 1, 1, 2, 0]])
        metrics = evaluate(make_metric(3, self.META), [(predicted, truth)])
        iou = [100 / 3, 200 / 3, 50]
        expected = {'thing': [0, 2], 'stuff': [1], 'base': [0, 1], 'novel': [2]}
        for group, labels in expected.items():
            mean = np.mean([iou[label] for label in labels])
            assert metrics[f'{group}.mIoU'] == pytest.approx(mean) and metrics[f'{group}.mIoU_gt'] == pytest.approx(
                mean
            )
        assert metrics['mIoU'] == pytest.approx(np.mean(iou))

    def test_without_ground_truth_have_no_figure_by_that_convention(self):
        truth, predicted = np.array([[0, 0, 1]]), np.array([[0, 2, 1]])
        metrics = evaluate(make_metric(3, self.META), [(predicted, truth)])
        assert metrics['novel.mIoU'] == 0 and not {'novel.mIoU_gt', 'novel.mAcc', 'novel.aAcc'} & metrics.keys()

    def test_that_are_all_classes_are_not_told_twice(self):
        metric = make_metric(2, {'is_thing': [True, True]})
        assert set(evaluate(metric, [(np.zeros((1, 1), int), np.zeros((1, 1), int))])) == {
            'mIoU',
            'mIoU_gt',
            'mAcc',
            'aAcc',
        }


class TestResults:
    @settings(max_examples=25)
    @given(data_sets(), st.randoms(use_true_random=False))
    def test_stored_as_json_and_shuffled_give_the_same_figures(self, case, shuffle: random.Random):
        metric = make_metric(case[0])
        metric.process({}, [sample(*pair) for pair in case[1]])
        stored = [json.loads(json.dumps(entry)) for entry in metric.results]
        shuffle.shuffle(stored)
        assert metric.compute_metrics(stored) == metric.evaluate(len(case[1]))

    def test_hold_only_classes_that_occur(self):
        truth = torch.tensor([[3, 3, 900, 255]])
        predicted = torch.tensor([[3, 7, 900, 900]], dtype=torch.int32)
        entry = count_image(predicted, truth, num_classes=1000, ignore_index=255)
        assert entry == {'labels': [3, 7, 900], 'intersection': [1, 0, 1], 'predicted': [1, 1, 1], 'truth': [2, 0, 1]}
        totals = sum_images([entry, entry], num_classes=1000)
        assert totals.dtype == np.int64 and totals.sum() == 16 and totals[:, 3].tolist() == [2, 2, 4]

    def test_of_images_that_a_sampler_repeats_are_dropped(self):
        pairs = [(np.zeros((1, 2), int), np.zeros((1, 2), int)), (np.array([[0, 1]]), np.zeros((1, 2), int))]
        metric = make_metric(2)
        metric.process({}, [sample(*pair) for pair in [*pairs, pairs[0]]])
        assert metric.evaluate(2)['aAcc'] == 75


class TestReport:
    def test_names_the_conventions(self, tmp_path, monkeypatch):
        lines = []
        monkeypatch.setattr('mmengine.logging.MMLogger.info', lambda self, text: lines.append(text))
        meta = {'is_thing': [True, True, False], 'ignore_index': 9}
        metric = make_metric(3, meta, per_class=True, out_json=str(tmp_path / 'iou.json'))
        metrics = evaluate(metric, [(np.array([[0, 1, 1]]), np.array([[0, 0, 9]]))])
        content = json.loads((tmp_path / 'iou.json').read_text())
        assert content['metrics'] == metrics and content['images'] == 1 and content['ignore_index'] == 9
        assert 'ground truth or predicted (MMSegmentation' in content['conventions']['mIoU']
        assert "in the ground truth (detectron2's since" in content['conventions']['mIoU_gt']
        assert (
            content['groups']['all'] | {'classes': 3, 'in_gt': 1, 'in_gt_or_predicted': 2} == content['groups']['all']
        )
        assert content['per_class'][:2] == [
            {'label': 0, 'name': 'c0', 'iou': 50.0, 'acc': 50.0, 'intersection': 1, 'predicted': 1, 'truth': 2},
            {'label': 1, 'name': 'c1', 'iou': 0.0, 'acc': None, 'intersection': 0, 'predicted': 1, 'truth': 0},
        ]
        assert content['per_class'][2]['iou'] is None
        (text,) = lines
        assert all(f'{name}: {rule}' in text for name, rule in content['conventions'].items())
        assert 'in GT or predicted' in text and 'c2' in text and 'stuff' in text

    def test_a_prefix_is_in_the_keys_and_in_the_name_of_the_file(self, tmp_path, monkeypatch):
        monkeypatch.setattr('mmengine.logging.MMLogger.log_file', str(tmp_path / 'run.log'), raising=False)
        metric = METRICS.build({'type': 'densevlm_mm.OVIoUMetric', 'prefix': 'voc20', 'ignore_index': 255})
        metric.dataset_meta = {'classes': ['a']}
        assert 'voc20/mIoU_gt' in evaluate(metric, [(np.zeros((1, 1), int), np.zeros((1, 1), int))])
        assert (tmp_path / 'voc20_iou.json').is_file()


class TestErrors:
    @pytest.mark.parametrize(
        ('predicted', 'truth', 'message'),
        [
            (np.zeros((2, 3), int), np.zeros((4, 6), int), 'prediction is 3x2 px, but the label map is 6x4 px'),
            (np.full((1, 1), 3), np.zeros((1, 1), int), 'prediction holds label 3, .* none of the 3 classes'),
            (np.zeros((1, 1), int), np.full((1, 1), 3), 'label map holds label 3, .* check ignore_index'),
            (np.full((1, 1), -1), np.zeros((1, 1), int), 'prediction holds label -1'),
        ],
    )
    def test_name_the_image(self, predicted, truth, message):
        with pytest.raises(ValueError, match=f'^b.jpg: the {message}'):
            make_metric(3).process({}, [sample(predicted, truth, 'b.jpg')])

    @pytest.mark.parametrize('key', ['gt_sem_seg', 'pred_sem_seg'])
    def test_a_missing_map_is_named(self, key):
        incomplete = sample(np.zeros((1, 1), int), np.zeros((1, 1), int))
        del incomplete[key]
        with pytest.raises(KeyError, match=f"a.jpg: no '{key}'"):
            make_metric(3).process({}, [incomplete])

    @pytest.mark.parametrize('names', [['c0', 'c2', 'c1'], ['c0'], ['c0', 'c1', 'c2', 'c3']])
    def test_of_predictions_in_another_vocabulary(self, names):
        entry = {**sample(np.zeros((1, 1), int), np.zeros((1, 1), int)), 'vocabulary': names}
        with pytest.raises(ValueError, match="a.jpg: .* another vocabulary than the data set's classes: position"):
            make_metric(3).process({}, [entry])
        metric = make_metric(3)
        metric.process({}, [{**entry, 'vocabulary': ('c0', 'c1', 'c2')}])
        assert metric.results

    def test_of_metainfo(self):
        with pytest.raises(ValueError, match="metainfo has 'classes'"):
            OVIoUMetric().dataset_meta = {'palette': []}
        with pytest.raises(ValueError, match=r"ignore_index 255 is the label of 'c255'; .* such as 65535"):
            make_metric(256)
        with pytest.raises(ValueError, match='dataset_meta was not set'):
            OVIoUMetric().process({}, [])

    def test_the_ignored_label_is_the_data_set_s_unless_given(self):
        assert make_metric(3, {'ignore_index': 77}).ignore_index == 77
        assert make_metric(3, {'ignore_index': 77}, ignore_index=78).ignore_index == 78
        assert make_metric(3).ignore_index == 255
