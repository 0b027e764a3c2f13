from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.evaluation import OVCocoMetric
from mmengine.evaluator import Evaluator

from densevlm_mm.det import OVDetectionMetric
from densevlm_mm.registry import METRICS

SIZE = 64
META = {
    'classes': ('cat', 'dog', 'bus', 'kite', 'tie', 'cup'),
    'base_classes': ('cat', 'bus', 'cup'),
    'novel_classes': ('dog', 'kite'),
}
# 'tie' is neither; 'cup' occurs nowhere; and ids are not labels
IDS = {'cat': 2, 'dog': 4, 'bus': 5, 'kite': 7, 'tie': 9, 'cup': 31}
GROUPS = ('base', 'novel', 'all')


def make_truth() -> dict:
    """Seven images with objects of all classes but 'cup', the last image empty."""
    generator = np.random.default_rng(0)
    annotations = []
    for image_id in range(10, 16):
        for name in generator.permutation(META['classes'][:5])[:4]:
            x, y, width, height = box = generator.integers(4, 30, 4).tolist()
            corners = [x, y, x + width, y, x + width, y + height, x, y + height]
            annotation = {'id': len(annotations) + 1, 'image_id': image_id, 'category_id': IDS[name], 'iscrowd': 0}
            annotations.append({**annotation, 'bbox': box, 'area': width * height, 'segmentation': [corners]})
    images = [{'id': number, 'width': SIZE, 'height': SIZE} for number in range(10, 17)]
    categories = [{'id': number, 'name': name} for name, number in IDS.items()]
    return {'images': images, 'categories': categories, 'annotations': annotations}


def make_samples(truth: dict, *, noise: int = 3, extra: int = 4) -> list[dict]:
    """Data samples that find every object, about, and a few that are none; masks are less exact than boxes."""
    generator = np.random.default_rng(1)
    labels = {IDS[name]: label for label, name in enumerate(META['classes'])}
    samples = []
    for image in truth['images']:
        mine = [annotation for annotation in truth['annotations'] if annotation['image_id'] == image['id']]
        objects = [(labels[annotation['category_id']], annotation['bbox']) for annotation in mine]
        objects += [(int(generator.integers(6)), generator.integers(4, 30, 4).tolist()) for _ in range(extra)]
        boxes = np.array([box for _, box in objects], dtype=float).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        boxes += generator.integers(-noise, noise + 1, boxes.shape)
        samples.append(make_sample(image['id'], [label for label, _ in objects], boxes, generator))
    return samples


def make_sample(image_id: int, labels: list[int], boxes: np.ndarray, generator: np.random.Generator) -> dict:
    masks = torch.zeros(len(labels), SIZE, SIZE, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.astype(int), strict=True):
        mask[y1 : y2 - 3, x1:x2] = True
    predicted = {
        'bboxes': torch.tensor(boxes, dtype=torch.float),
        'labels': torch.tensor(labels, dtype=torch.long),
        'scores': torch.tensor(generator.random(len(labels))),
        'masks': masks,
    }
    return {'img_id': image_id, 'ori_shape': (SIZE, SIZE), 'pred_instances': predicted}


@pytest.fixture
def truth(tmp_path) -> dict:
    return make_truth()


def build(folder: Path, truth: dict, *, meta: dict | None = META, **options) -> OVDetectionMetric:
    path = folder / 'truth.json'
    path.write_text(json.dumps(truth))
    metric = METRICS.build({'type': 'densevlm_mm.OVDetectionMetric', 'ann_file': str(path), **options})
    metric.dataset_meta = meta
    return metric


def evaluate(metric, samples: list[dict], size: int | None = None) -> dict[str, float]:
    evaluator = Evaluator(metric)
    for start in range(0, len(samples), 2):
        evaluator.process(deepcopy(samples[start : start + 2]))
    figures = evaluator.evaluate(size or len(samples))
    assert all(key.startswith('coco/') for key in figures)
    return {key.removeprefix('coco/'): value for key, value in figures.items()}


@pytest.mark.parametrize('kind', ['bbox', 'segm'])
def test_base_and_novel_are_mmdetection_s(tmp_path, truth, kind):
    figures = evaluate(build(tmp_path, truth, metric=kind), make_samples(truth))
    reference = OVCocoMetric(ann_file=str(tmp_path / 'truth.json'), metric=kind)
    reference.dataset_meta = META
    expected = evaluate(reference, make_samples(truth))
    names = ['base_ap', 'base_ap50', 'novel_ap', 'novel_ap50']
    assert {name: figures[name] for name in names} == {name: pytest.approx(expected[name], rel=1e-12) for name in names}
    assert len({figures[name] for name in names} - {0, 1}) == 4


def test_results_may_travel_by_a_folder(tmp_path, truth):
    metric = build(tmp_path, truth, collect_dir=str(tmp_path / 'shared'))
    assert metric.collect_dir == str(tmp_path / 'shared')
    assert evaluate(metric, make_samples(truth)) == evaluate(build(tmp_path, truth), make_samples(truth))
    with pytest.raises(ValueError, match="collect_dir is only for collect_device='cpu'"):
        build(tmp_path, truth, collect_dir=str(tmp_path), collect_device='gpu')


def test_all_classes_are_those_of_both_groups(tmp_path, truth):
    """Two base classes with ground truth, two novel ones; MMDetection has the same, rounded, under another name."""
    figures = evaluate(build(tmp_path, truth), make_samples(truth))
    for name in ('ap', 'ap50'):
        assert figures[f'all_{name}'] == pytest.approx((figures[f'base_{name}'] + figures[f'novel_{name}']) / 2)
    reference = OVCocoMetric(ann_file=str(tmp_path / 'truth.json'))
    reference.dataset_meta = META | {'classes': META['base_classes'] + META['novel_classes']}
    # its labels are the categories in the order of the file
    order = [name for name in META['classes'] if name != 'tie']
    samples = make_samples(truth)
    for sample in samples:
        predicted = sample['pred_instances']
        kept = predicted['labels'] != META['classes'].index('tie')
        sample['pred_instances'] = predicted = {key: value[kept] for key, value in predicted.items()}
        predicted['labels'] = torch.tensor([order.index(META['classes'][i]) for i in predicted['labels']]).long()
    expected = evaluate(reference, samples)
    assert round(figures['all_ap50'], 3) == expected['bbox_mAP_50'] != figures['all_ap50']
    assert round(figures['all_ap'], 3) == expected['bbox_mAP'] != figures['all_ap']


def test_boxes_and_masks_do_not_overwrite_each_other(tmp_path, truth):
    samples = make_samples(truth)
    both = evaluate(build(tmp_path, truth, metric=['bbox', 'segm']), samples)
    assert both.keys() == {
        f'{kind}{group}_{name}' for kind in ('', 'bbox_', 'segm_') for group in GROUPS for name in ('ap', 'ap50')
    }
    for kind in ('bbox', 'segm'):
        alone = evaluate(build(tmp_path, truth, metric=kind), samples)
        assert {key: both[key] for key in alone if key.startswith(kind)} == {
            f'{kind}_{group}_{name}': alone[f'{group}_{name}'] for group in GROUPS for name in ('ap', 'ap50')
        }
    assert both['bbox_all_ap'] > both['segm_all_ap'] > 0
    assert both['all_ap'] == both['bbox_all_ap']


def test_exact_detections_are_worth_1(tmp_path, truth):
    figures = evaluate(build(tmp_path, truth), make_samples(truth, noise=0, extra=0))
    assert figures == pytest.approx(dict.fromkeys(figures, 1.0))


def test_order_of_the_file_does_not_matter(tmp_path, truth):
    """It does to MMDetection's metric, which takes the ids to ascend."""
    samples = make_samples(truth)
    figures = evaluate(build(tmp_path, truth), samples)
    truth['categories'].reverse()
    assert evaluate(build(tmp_path, truth), samples) == figures


def test_a_group_without_an_object_is_minus_1(tmp_path, truth):
    novel = {IDS[name] for name in META['novel_classes']}
    truth['annotations'] = [item for item in truth['annotations'] if item['category_id'] not in novel]
    figures = evaluate(build(tmp_path, truth), make_samples(truth))
    assert figures['novel_ap50'] == figures['novel_ap'] == -1
    assert figures['base_ap50'] == figures['all_ap50'] > 0


@pytest.mark.parametrize('empty', [True, False], ids=['no detection', 'no image'])
def test_nothing_detected_gives_zeros_and_a_warning(tmp_path, truth, logger, empty):
    samples = make_samples({**truth, 'annotations': []}, extra=0) if empty else []
    metric = build(tmp_path, truth, metric=['bbox', 'segm'])
    figures = evaluate(metric, samples)
    assert len(figures) == 18
    assert set(figures.values()) == {0.0}
    assert f'segm: nothing was detected in {len(samples)} images' in (tmp_path / 'run.log').read_text()


def test_images_that_a_sampler_repeats_count_once(tmp_path, truth):
    """What mmengine collects: the ranks' lists interleaved, cut to the size of the data set."""
    samples = make_samples(truth)
    assert evaluate(build(tmp_path, truth), [*samples, samples[0]], size=7) == evaluate(build(tmp_path, truth), samples)


def test_tables_and_file_go_to_the_log_folder(tmp_path, truth, logger):
    metric = build(tmp_path, truth, per_class=True)
    figures = evaluate(metric, make_samples(truth))
    content = json.loads((tmp_path / 'coco_ap.json').read_text())
    assert content['metrics'] == {key: value for key, value in figures.items() if key.startswith('bbox_')}
    entries = {entry['name']: entry for entry in content['per_class']}
    assert {name: entry['group'] for name, entry in entries.items()} == {
        'cat': 'base', 'dog': 'novel', 'bus': 'base', 'kite': 'novel', 'cup': 'base'
    }  # fmt: skip
    assert entries['cup']['bbox_ap50'] == -1
    assert (entries['dog']['bbox_ap50'] + entries['kite']['bbox_ap50']) / 2 == pytest.approx(figures['novel_ap50'])
    lines = [line.split() for line in (tmp_path / 'run.log').read_text().splitlines()]
    assert [
        'bbox',
        *(f'{100 * figures[f"{group}_{name}"]:.2f}' for group in GROUPS for name in ('ap', 'ap50')),
    ] in lines
    assert ['cup', 'base', '-', '-'] in lines


def test_detections_are_kept_when_asked_for(tmp_path, truth):
    prefix = tmp_path / 'new' / 'found'
    samples = make_samples(truth)
    evaluate(build(tmp_path, truth, outfile_prefix=str(prefix)), samples)
    found = json.loads(prefix.with_name('found.bbox.json').read_text())
    assert len(found) == sum(len(sample['pred_instances']['labels']) for sample in samples)
    assert {item['category_id'] for item in found} == set(IDS.values())


@pytest.mark.parametrize(('change', 'message'), [
    ({'classes': ()}, "needs a data set whose metainfo has 'classes'"),
    ({'base_classes': ()}, r"no 'base_classes'; .* needs metainfo=dict\(classes=\.\.\., base_classes=.*novel_classes"),
    ({'novel_classes': None}, "metainfo has no 'novel_classes'"),
    ({'novel_classes': ('dog', 'ufo')}, "'ufo' is one of 'novel_classes' in the data set's metainfo, but not of 'cl"),
    ({'novel_classes': ('dog', 'cat')}, r"'base_classes' and 'novel_classes' of the metainfo share \['cat'\]"),
])  # fmt: skip
def test_metainfo_that_does_not_do_is_refused_at_once(tmp_path, truth, change, message):
    with pytest.raises(ValueError, match=message):
        build(tmp_path, truth, meta=META | change)


def test_a_novel_class_missing_from_the_file_is_an_error(tmp_path, truth):
    """As in a file that a converter left with the base classes only."""
    truth['categories'] = [entry for entry in truth['categories'] if entry['name'] != 'kite']
    with pytest.raises(ValueError, match="truth.json has no category 'kite', one of the novel classes"):
        build(tmp_path, truth)


def test_a_class_of_no_group_may_be_missing_from_the_file(tmp_path, truth):
    figures = evaluate(build(tmp_path, truth), make_samples(truth))
    tie = IDS['tie']
    samples = make_samples(truth)
    truth['categories'] = [entry for entry in truth['categories'] if entry['id'] != tie]
    truth['annotations'] = [item for item in truth['annotations'] if item['category_id'] != tie]
    assert evaluate(build(tmp_path, truth), samples) == figures


def broken(samples: list[dict], **change) -> list[dict]:
    samples[1]['pred_instances'] |= change.pop('pred_instances', {})
    samples[1] |= change
    return samples


@pytest.mark.parametrize(('change', 'message'), [
    ({'img_id': 99}, 'image 99: .*truth.json lists no image with the id 99; the metric and the data set need the same'),
    ({'pred_instances': {'labels': torch.tensor([0, 6])}}, 'image 11: the model detects class 6, the data set has 6'),
])  # fmt: skip
def test_samples_that_do_not_fit_are_found_while_processing(tmp_path, truth, change, message):
    metric = build(tmp_path, truth)
    with pytest.raises(ValueError, match=message):
        metric.process(None, broken(make_samples(truth), **change))


def test_masks_are_needed_for_masks(tmp_path, truth):
    samples = make_samples(truth)
    del samples[0]['pred_instances']['masks']
    with pytest.raises(ValueError, match="image 10: metric 'segm' needs masks, .* use metric='bbox'"):
        build(tmp_path, truth, metric='segm').process(None, samples)


def test_annotations_without_masks_are_found_at_once(tmp_path, truth):
    del truth['annotations'][3]['segmentation']
    with pytest.raises(ValueError, match="truth.json: annotation 4 has no 'segmentation'; use metric='bbox'"):
        build(tmp_path, truth, metric=['bbox', 'segm'])


def test_annotation_0_is_refused(tmp_path, truth):
    truth['annotations'][0]['id'] = 0
    with pytest.raises(ValueError, match='truth.json: an annotation has the id 0, .* number the annotations from 1'):
        build(tmp_path, truth)


@pytest.mark.parametrize('metric', ['proposal', [], ['bbox', 'masks']])
def test_unknown_metrics_are_refused(tmp_path, truth, metric):
    with pytest.raises(ValueError, match="metric must be 'bbox', 'segm' or a list of them, got"):
        build(tmp_path, truth, metric=metric)


def test_metainfo_must_have_been_set(tmp_path, truth):
    build(tmp_path, truth)
    metric = OVDetectionMetric(ann_file=str(tmp_path / 'truth.json'))
    with pytest.raises(ValueError, match='OVDetectionMetric.dataset_meta was not set'):
        metric.process(None, make_samples(truth))
