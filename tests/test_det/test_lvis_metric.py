from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.evaluator import Evaluator
from pycocotools import mask as mask_tools
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from densevlm_mm.registry import METRICS

SIZE = 160
THRESHOLDS = np.linspace(0.5, 0.95, 10)
AREAS = {'': (0, 1e10), 's': (0, 32**2), 'm': (32**2, 96**2), 'l': (96**2, 1e10)}
NAMES = ('AP', 'AP50', 'AP75', 'APs', 'APm', 'APl', 'APr', 'APc', 'APf')


def category(number: int, frequency: str) -> dict:
    return {'id': number, 'name': f'class {number}', 'frequency': frequency}


def image(number: int, *, negative: tuple = (), incomplete: tuple = ()) -> dict:
    lists = {'neg_category_ids': list(negative), 'not_exhaustive_category_ids': list(incomplete)}
    return {'id': number, 'width': SIZE, 'height': SIZE, **lists}


def encode(box: list[int]) -> dict:
    """The mask that fills a box xywh, whose IoUs and area are those of the box."""
    mask = np.zeros((SIZE, SIZE), np.uint8, order='F')
    mask[box[1] : box[1] + box[3], box[0] : box[0] + box[2]] = 1
    rle = mask_tools.encode(mask)
    return {'size': rle['size'], 'counts': rle['counts'].decode()}


def annotate(objects: list[tuple[int, int, list[int]]]) -> list[dict]:
    """Annotations of objects ``(image, category, box xywh)``; LVIS has no 'iscrowd'."""
    return [
        {
            'id': number,
            'image_id': image_id,
            'category_id': category_id,
            'bbox': box,
            'area': box[2] * box[3],
            'segmentation': encode(box),
        }
        for number, (image_id, category_id, box) in enumerate(objects, start=1)
    ]


def make_samples(truth: dict, found: list[tuple[int, int, list[int], float]]) -> list[dict]:
    """Data samples of detections ``(image, category, box xywh, score)``, one of each image."""
    labels = {entry['id']: label for label, entry in enumerate(truth['categories'])}
    samples = []
    for entry in truth['images']:
        mine = [detection for detection in found if detection[0] == entry['id']]
        boxes = torch.tensor([box for _, _, box, _ in mine], dtype=torch.float).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        masks = torch.zeros(len(mine), SIZE, SIZE, dtype=torch.bool)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y1:y2, x1:x2] = True
        predicted = {
            'bboxes': boxes,
            'labels': torch.tensor([labels[number] for _, number, _, _ in mine], dtype=torch.long),
            'scores': torch.tensor([score for *_, score in mine], dtype=torch.double),
            'masks': masks,
        }
        samples.append({'img_id': entry['id'], 'ori_shape': (SIZE, SIZE), 'pred_instances': predicted})
    return samples


@pytest.fixture(scope='module')
def evaluate(tmp_path_factory) -> Callable[..., dict[str, float]]:
    """Figures without prefix, of detections ``(image, category, box xywh, score)``."""
    folder = tmp_path_factory.mktemp('lvis')

    def run(truth: dict, found: list, *, metric: str | list[str] = 'bbox', **options) -> dict[str, float]:
        path = folder / 'truth.json'
        path.write_text(json.dumps(truth))
        metric = METRICS.build({'type': 'densevlm_mm.OVLVISMetric', 'ann_file': str(path), 'metric': metric, **options})
        evaluator = Evaluator(metric)
        evaluator.dataset_meta = {'classes': tuple(entry['name'] for entry in truth['categories'])}
        samples = make_samples(truth, found)
        evaluator.process(samples)
        return {key.removeprefix('lvis/'): value for key, value in evaluator.evaluate(len(samples)).items()}

    return run


def make_world(seed: int, *, federated: bool = True) -> tuple[dict, list[tuple[int, int, list[int], float]]]:
    """Annotations and detections; without ``federated``, all is known of all images."""
    generator = np.random.default_rng(seed)
    ids = (generator.permutation(20)[:6] + 1).tolist()
    images, objects, found = [], [], []
    for number in (11, 3, 7, 5):
        positive, negative = ids_of_image(generator, ids)
        incomplete = [entry for entry in positive if generator.random() < 0.5]
        if not federated:
            negative, incomplete = [entry for entry in ids if entry not in positive], []
        images.append(image(number, negative=negative, incomplete=incomplete))
        mine = [(number, entry, random_box(generator)) for entry in positive for _ in range(generator.integers(1, 4))]
        objects += mine
        found += random_detections(generator, number, mine, ids)
    categories = [category(number, 'rcf'[label % 3]) for label, number in enumerate(ids)]
    return {'images': images, 'categories': categories, 'annotations': annotate(objects)}, found


def ids_of_image(generator: np.random.Generator, ids: list[int]) -> tuple[list[int], list[int]]:
    mixed = generator.permutation(ids).tolist()
    return mixed[:2], mixed[2:4]


def random_box(generator: np.random.Generator) -> list[int]:
    corner, side = generator.integers(0, 40, 2), generator.integers(8, 115, 2)
    return [*corner.tolist(), *side.tolist()]


def random_detections(generator: np.random.Generator, number: int, objects: list, ids: list[int]) -> Iterator[tuple]:
    for _ in range(24):
        _, entry, box = objects[generator.integers(len(objects))]
        if generator.random() < 0.2:
            entry = int(generator.choice(ids))
        moved = np.maximum(np.array(box) + generator.integers(-6, 7, 4), [0, 0, 2, 2]).tolist()
        yield number, entry, moved if generator.random() < 0.8 else random_box(generator), float(generator.random())


def overlap(one: list[int], other: list[int]) -> float:
    """IoU of two boxes xywh."""
    width = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    height = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    both = max(width, 0) * max(height, 0)
    return both / (one[2] * one[3] + other[2] * other[3] - both)


def verdicts(truth: dict, found: list, entry: int, threshold: float, area: tuple) -> tuple[list[tuple], int]:
    """``(score, right or wrong)`` of the detections of a class that count, and how many objects there are to find."""
    counted, wanted = [], 0
    for picture in truth['images']:
        objects = [a for a in truth['annotations'] if (a['image_id'], a['category_id']) == (picture['id'], entry)]
        if not objects and entry not in picture['neg_category_ids']:
            continue  # nobody knows whether the class is there
        fits = [area[0] <= item['area'] <= area[1] for item in objects]
        wanted += sum(fits)
        taken = set()
        mine = [detection for detection in found if detection[:2] == (picture['id'], entry)]
        for *_, box, score in sorted(mine, key=lambda detection: -detection[3]):
            overlaps = [overlap(box, item['bbox']) for item in objects]
            free = [i for i in range(len(objects)) if i not in taken and overlaps[i] >= threshold]
            if free:
                best = max(free, key=lambda i: (fits[i], overlaps[i]))
                taken.add(best)
                if fits[best]:
                    counted.append((score, True))
            elif area[0] <= box[2] * box[3] <= area[1] and entry not in picture['not_exhaustive_category_ids']:
                counted.append((score, False))
    return counted, wanted


def plain_ap(truth: dict, found: list, entry: int, threshold: float, area: tuple) -> float | None:
    """Precision at 101 recalls, averaged; None without an object."""
    counted, wanted = verdicts(truth, found, entry, threshold, area)
    if not wanted:
        return None
    curve, right = [], 0
    for rank, (_, hit) in enumerate(sorted(counted, reverse=True), start=1):
        right += hit
        curve.append((right / wanted, right / rank))
    return float(np.mean([
        max((precision for recall, precision in curve if recall >= level), default=0.0)
        for level in np.linspace(0, 1, 101)
    ]))  # fmt: skip


def plain_figures(truth: dict, found: list) -> dict[str, float]:
    def mean(thresholds=THRESHOLDS, area: str = '', frequencies: str = 'rcf') -> float:
        ids = [entry['id'] for entry in truth['categories'] if entry['frequency'] in frequencies]
        parts = [plain_ap(truth, found, entry, t, AREAS[area]) for entry in ids for t in thresholds]
        parts = [part for part in parts if part is not None]
        return float(np.mean(parts)) if parts else -1.0

    figures = [mean(), mean(THRESHOLDS[:1]), mean(THRESHOLDS[5:6]), *(mean(area=size) for size in 'sml')]
    return dict(zip(NAMES, [*figures, *(mean(frequencies=letter) for letter in 'rcf')], strict=True))


@settings(max_examples=8)
@given(seed=st.integers(0, 10**6))
def test_figures_are_those_of_plain_loops(evaluate, seed):
    truth, found = make_world(seed)
    expected = plain_figures(truth, found)
    assert 0 < expected['AP'] < 1
    figures = evaluate(truth, found, metric=['bbox', 'segm'])
    assert figures == pytest.approx(
        {f'{kind}_{key}': value for kind in ('bbox', 'segm') for key, value in expected.items()}
    )


@pytest.mark.parametrize('kind', ['bbox', 'segm'])
def test_without_gaps_it_is_coco_s_evaluation(evaluate, kind):
    truth, found = make_world(0, federated=False)
    figures = evaluate(truth, found, metric=kind)
    with redirect_stdout(io.StringIO()):
        reference = coco_evaluation(truth, found, kind)
    expected = dict(zip(NAMES, reference.stats[:6].tolist(), strict=False))
    for letter, start in zip('rcf', range(3), strict=True):
        members = sorted(entry['id'] for entry in truth['categories'])
        members = [members.index(entry['id']) for entry in truth['categories'][start::3]]
        part = reference.eval['precision'][:, :, members, 0, -1]
        expected[f'AP{letter}'] = part[part > -1].mean()
    assert figures == pytest.approx({f'{kind}_{key}': value for key, value in expected.items()}, rel=1e-12)


def coco_evaluation(truth: dict, found: list, kind: str) -> COCOeval:
    api = COCO()
    api.dataset = deepcopy(truth)
    for annotation in api.dataset['annotations']:
        annotation['iscrowd'] = 0
    api.createIndex()
    detections = [
        {'image_id': number, 'category_id': entry, 'score': score}
        | ({'bbox': box} if kind == 'bbox' else {'segmentation': encode(box)})
        for number, entry, box, score in found
    ]
    evaluator = COCOeval(api, api.loadRes(detections), kind)
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    return evaluator


BOX, ELSEWHERE = [10, 10, 40, 40], [100, 100, 40, 40]


def small_world(**lists) -> dict:
    """Image 1 has an object of class 1, and image 2 none that is annotated; there are classes 1 and 2."""
    images = [image(1), image(2, **lists)]
    categories = [category(1, 'r'), category(2, 'f')]
    return {'images': images, 'categories': categories, 'annotations': annotate([(1, 1, BOX)])}


RIGHT = (1, 1, BOX, 0.5)


@pytest.mark.parametrize(('lists', 'expected'), [({}, 1.0), ({'negative': (1,)}, 0.5), ({'incomplete': (1,)}, 1.0)])
def test_a_detection_is_wrong_only_where_the_class_is_known_to_be_absent(evaluate, lists, expected):
    figures = evaluate(small_world(**lists), [RIGHT, (2, 1, BOX, 0.9)])
    assert figures['bbox_APr'] == figures['bbox_AP'] == pytest.approx(expected)
    assert figures['bbox_APf'] == figures['bbox_APc'] == -1


@pytest.mark.parametrize(('incomplete', 'expected'), [((), 0.5), ((1,), 1.0)])
def test_unmatched_is_not_wrong_where_not_all_objects_are_annotated(evaluate, incomplete, expected):
    truth = small_world()
    truth['images'][0] = image(1, incomplete=incomplete)
    assert evaluate(truth, [RIGHT, (1, 1, ELSEWHERE, 0.9)])['bbox_AP'] == pytest.approx(expected)
    assert evaluate(truth, [(1, 1, ELSEWHERE, 0.9)])['bbox_AP'] == 0  # and still the object is to be found


@pytest.mark.parametrize(('better', 'expected'), [(299, 1.0), (300, 0.0)])
def test_the_300_best_of_an_image_count_whatever_their_class(evaluate, better, expected):
    figures = evaluate(small_world(), [RIGHT, *[(1, 2, ELSEWHERE, 0.9)] * better])
    assert figures['bbox_AP'] == pytest.approx(expected)


def test_detections_of_unknown_classes_are_dropped_at_once(tmp_path):
    """They are most of them: what remains is what travels between processes."""
    metric = build(tmp_path, small_world(negative=(2,)))
    metric.process(None, make_samples(small_world(), [RIGHT, (1, 2, BOX, 0.9), (2, 2, BOX, 0.3), (2, 1, BOX, 0.2)]))
    assert [(result['labels'].tolist(), len(result['masks'])) for _, result in metric.results] == [([0], 1), ([1], 1)]


def test_masks_are_small_by_their_own_area(tmp_path):
    truth = small_world()
    samples = make_samples(truth, [RIGHT, (1, 1, ELSEWHERE, 0.9)])
    samples[0]['pred_instances']['masks'][1, 105:] = False
    metric = build(tmp_path, truth)
    metric.process(None, samples)
    figures = metric.evaluate(len(samples))
    assert figures['lvis/bbox_APm'] == pytest.approx(0.5)
    assert figures['lvis/segm_APm'] == pytest.approx(1)  # not a medium one, and wrong


def test_nothing_detected_gives_zeros(evaluate):
    assert evaluate(small_world(), [], metric=['bbox', 'segm']) == {
        f'{kind}_{name}': -1.0 if name in ('APs', 'APl', 'APc', 'APf') else 0.0
        for kind in ('bbox', 'segm')
        for name in NAMES
    }


def test_classes_are_written_with_their_frequency(evaluate, tmp_path):
    path = tmp_path / 'figures.json'
    figures = evaluate(small_world(), [RIGHT], per_class=True, out_json=str(path))
    content = json.loads(path.read_text())
    assert content['metrics'] == figures
    assert [(entry['name'], entry['group'], entry['bbox_ap']) for entry in content['per_class']] == [
        ('class 1', 'rare', pytest.approx(1)),
        ('class 2', 'frequent', -1),
    ]


def build(folder: Path, truth: dict, classes: tuple[str, ...] = ('class 1', 'class 2')):
    path = folder / 'truth.json'
    path.write_text(json.dumps(truth))
    metric = METRICS.build({'type': 'densevlm_mm.OVLVISMetric', 'ann_file': str(path), 'metric': ['bbox', 'segm']})
    metric.dataset_meta = {'classes': classes}
    return metric


@pytest.mark.parametrize('key', ['neg_category_ids', 'not_exhaustive_category_ids'])
def test_an_image_without_the_federated_lists_is_an_error(tmp_path, key):
    truth = small_world()
    del truth['images'][1][key]
    with pytest.raises(ValueError, match=f"truth.json: image 2 has no '{key}'; use LVIS's annotations, or OVDetection"):
        build(tmp_path, truth)


def test_a_category_without_frequency_is_an_error(tmp_path):
    truth = small_world()
    del truth['categories'][1]['frequency']
    with pytest.raises(ValueError, match="truth.json: category 'class 2' has no 'frequency' r, c or f"):
        build(tmp_path, truth)


def test_a_class_that_the_file_does_not_list_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="truth.json has no category 'class 3', which the data set's metainfo names"):
        build(tmp_path, small_world(), classes=('class 1', 'class 2', 'class 3'))
