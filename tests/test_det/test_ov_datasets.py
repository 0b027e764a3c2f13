"""Data sets with a vocabulary: a label is a position in it, or the file is refused."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdet.evaluation import OVCocoMetric

from densevlm_mm.datasets.miniworld import NOVEL_THINGS, THINGS, open_vocabulary
from densevlm_mm.det import OVCocoDataset, OVLVISDataset, OVObjects365Dataset
from densevlm_mm.registry import DATASETS
from densevlm_mm.vlm import Vocabulary

NAMES = ['a', 'b', 'c', 'd']
SPLIT = {'things': NAMES, 'base': ['a', 'c'], 'novel': ['b']}  # d is in no part


def make_content(listed: list[str], objects: list[tuple[int, str]], *, step: int = 5) -> dict:
    """Categories in the order listed, every name with the same id in any order; one 8 x 8 box per object."""
    ids = {name: step * (ord(name) - ord('a') + 1) for name in listed}
    shape = {'bbox': [1, 1, 8, 8], 'area': 64, 'iscrowd': 0}
    return {
        'images': [{'id': i, 'file_name': f'{i}.jpg', 'width': 20, 'height': 20} for i, _ in dict(objects).items()],
        'annotations': [
            {'id': i, 'image_id': image, 'category_id': ids[name], **shape} for i, (image, name) in enumerate(objects)
        ],
        'categories': [{'id': ids[name], 'name': name} for name in listed],
    }


@pytest.fixture
def load(tmp_path) -> Callable[..., OVCocoDataset]:
    """Writes a file and reads it back."""

    def run(content: dict, vocabulary: object = SPLIT, *, type: type = OVCocoDataset, **options: object):
        (tmp_path / 'boxes.json').write_text(json.dumps(content))
        options = {'data_prefix': {'img': 'images'}, 'serialize_data': False, **options}
        return type(str(tmp_path / 'boxes.json'), vocabulary=vocabulary, **options)

    return run


def labels_of(dataset: OVCocoDataset) -> dict[int, list[int]]:
    return {entry['img_id']: [box['bbox_label'] for box in entry['instances']] for entry in dataset.data_list}


@pytest.fixture
def miniworld_options(miniworld) -> dict:
    folder = miniworld / 'annotations'
    return {
        'ann_file': str(folder / 'instances_val2017_ov.json'),
        'data_prefix': {'img': str(miniworld / 'val2017')},
        'vocabulary': str(folder / 'vocabulary_ov.json'),
        'test_mode': True,
    }


class TestLabels:
    @settings(max_examples=60)
    @given(st.permutations(NAMES), st.integers(0, 4), st.permutations(NAMES), st.integers(1, 4))
    def test_are_positions_in_the_vocabulary_or_the_file_is_refused(self, listed, cut, chosen, size):
        listed, chosen = listed[cut:] or listed, chosen[:size]
        content = make_content(listed, list(enumerate(listed)))
        options = {'data_prefix': {'img': ''}, 'serialize_data': False}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / 'boxes.json'
            path.write_text(json.dumps(content))
            if [name for name in listed if name in chosen] != chosen:
                with pytest.raises(ValueError, match='boxes.json: lists'):
                    OVCocoDataset(str(path), vocabulary=chosen, **options)
                return
            dataset = OVCocoDataset(str(path), vocabulary=chosen, **options)
        expected = {i: [chosen.index(name)] if name in chosen else [] for i, name in enumerate(listed)}
        assert labels_of(dataset) == expected

    @pytest.mark.parametrize(
        ('listed', 'message'),
        [
            (['a', 'c'], r"lists no categories \['b', 'd'\]; keep all categories: tools/dataset_converters/ov_coco.py"),
            (['a', 'c', 'b', 'd'], "position 1 is 'c', not 'b'; write it with tools/dataset_converters/ov_coco.py"),
        ],
    )
    def test_refusals_say_what_to_do(self, load, tmp_path, listed, message):
        with pytest.raises(ValueError, match=f'^{tmp_path / "boxes.json"}: .*{message}'):
            load(make_content(listed, [(1, 'a')]))

    def test_a_category_listed_twice_is_refused(self, load):
        content = make_content(NAMES, [(1, 'a')])
        content['categories'].insert(2, {'id': 99, 'name': 'b'})
        with pytest.raises(ValueError, match="position 2 is 'b', not 'c'"):
            load(content)

    @pytest.mark.parametrize('key', ['categories', 'bbox'])
    def test_incomplete_files_are_named(self, load, key):
        content = make_content(NAMES, [(1, 'a')])
        (content if key in content else content['annotations'][0]).pop(key)
        with pytest.raises(ValueError, match=f"boxes.json: an entry, .* has no '{key}'"):
            load(content)

    def test_of_the_mini_world(self, miniworld_options):
        dataset = DATASETS.build({'type': 'densevlm_mm.OVCocoDataset', 'serialize_data': False, **miniworld_options})
        content = json.loads(Path(miniworld_options['ann_file']).read_text())
        names = {category['id']: category['name'] for category in content['categories']}
        expected = [(a['image_id'], names[a['category_id']]) for a in content['annotations']]
        found = [(image, THINGS[label]) for image, labels in labels_of(dataset).items() for label in labels]
        assert found == expected and len(dataset) == 8

    @pytest.mark.parametrize(('missed', 'base_ap', 'novel_ap'), [((), 1, 1), (NOVEL_THINGS, 1, 0)])
    def test_metrics_of_mmdet_agree(self, miniworld_options, missed, base_ap, novel_ap):
        dataset = OVCocoDataset(**miniworld_options)
        metric = OVCocoMetric(ann_file=miniworld_options['ann_file'])
        metric.dataset_meta = dataset.metainfo
        for i in range(len(dataset)):
            entry = dataset.get_data_info(i)
            found = [box for box in entry['instances'] if THINGS[box['bbox_label']] not in missed]
            predicted = {
                'bboxes': torch.tensor([box['bbox'] for box in found]).reshape(-1, 4),
                'scores': torch.ones(len(found)),
                'labels': torch.tensor([box['bbox_label'] for box in found]),
            }
            metric.process({}, [{'img_id': entry['img_id'], 'ori_shape': (48, 48), 'pred_instances': predicted}])
        result = metric.evaluate(len(dataset))
        assert (result['coco/base_ap50'], result['coco/novel_ap50']) == (pytest.approx(base_ap), novel_ap)


class TestMetainfo:
    def test_is_the_vocabulary_s(self, load):
        metainfo = load(make_content(NAMES, [(1, 'a')])).metainfo
        parts = {'base_classes': ('a', 'c'), 'novel_classes': ('b',)}
        assert metainfo == {'classes': tuple(NAMES), 'palette': None, **parts}

    def test_an_empty_part_is_left_out(self, load):
        metainfo = load(make_content(NAMES, [(1, 'a')]), NAMES).metainfo
        assert metainfo == {'classes': tuple(NAMES), 'palette': None}


class TestNovel:
    OBJECTS = [(1, 'a'), (1, 'b'), (2, 'b'), (3, 'd'), (4, 'c')]

    @pytest.mark.parametrize('name', ['b', 'd'])
    def test_is_an_error_in_training(self, load, name):
        message = f"boxes.json: annotation 1 is of '{name}', which is no base class: .*--keep base, or set novel='drop'"
        with pytest.raises(ValueError, match=message):
            load(make_content(NAMES, [(1, 'a'), (2, name)]))
        assert labels_of(load(make_content(NAMES, [(1, 'a'), (2, 'c')]))) == {1: [0], 2: [2]}

    def test_is_dropped_with_the_images_that_are_left_empty(self, load):
        content = make_content(NAMES, self.OBJECTS)
        assert labels_of(load(content, novel='drop')) == {1: [0], 2: [], 3: [], 4: [2]}
        assert labels_of(load(content, novel='drop', filter_cfg={'filter_empty_gt': True})) == {1: [0], 4: [2]}

    def test_is_kept_in_tests_and_where_asked_for(self, load):
        content = make_content(NAMES, self.OBJECTS)
        expected = {1: [0, 1], 2: [1], 3: [3], 4: [2]}
        assert labels_of(load(content, test_mode=True)) == labels_of(load(content, novel='keep')) == expected

    def test_needs_a_split(self, load):
        content = make_content(NAMES, self.OBJECTS)
        assert labels_of(load(content, NAMES, novel='drop')) == {1: [0, 1], 2: [1], 3: [3], 4: [2]}

    def test_of_the_mini_world(self, miniworld, miniworld_options):
        options = miniworld_options | {'test_mode': False, 'serialize_data': False}
        full, base = (
            OVCocoDataset(**options | {'ann_file': str(miniworld / 'annotations' / name), 'novel': novel})
            for name, novel in (('instances_train2017.json', 'drop'), ('instances_train2017_ov.json', 'error'))
        )
        kept = {image: labels for image, labels in labels_of(full).items() if labels}
        assert kept == labels_of(base)
        novel = {open_vocabulary().names.index(name) for name in NOVEL_THINGS}
        assert not novel & {label for labels in kept.values() for label in labels}

    def test_other_words_are_refused(self, load):
        with pytest.raises(ValueError, match="'error', 'drop' or 'keep', got 'ignore'"):
            load(make_content(NAMES, self.OBJECTS), novel='ignore')


def test_pipeline_of_mmdet(miniworld_options):
    pipeline = [{'type': 'LoadImageFromFile'}, {'type': 'LoadAnnotations', 'with_bbox': True, 'with_mask': True}]
    pipeline += [{'type': 'PackDetInputs', 'meta_keys': ('img_id',)}]
    dataset = OVCocoDataset(**miniworld_options, pipeline=pipeline)
    instances = dataset[0]['data_samples'].gt_instances
    boxes = instances.bboxes.tensor.numpy().astype(int)
    assert len(boxes) == len(instances.labels) > 0
    for (x1, y1, x2, y2), mask in zip(boxes, instances.masks.masks, strict=True):
        rows, columns = np.nonzero(mask)
        assert (x1, y1, x2 - 1, y2 - 1) == (columns.min(), rows.min(), columns.max(), rows.max())


class TestLVIS:
    def content(self) -> dict:
        content = make_content(NAMES, [(1, 'a'), (2, 'c')])
        for image, folder in zip(content['images'], ('train2017', 'val2017'), strict=True):
            del image['file_name']
            image['coco_url'] = f'http://images.cocodataset.org/{folder}/{image["id"]:012d}.jpg'
            image |= {'neg_category_ids': [10], 'not_exhaustive_category_ids': []}
        for annotation in content['annotations']:
            del annotation['iscrowd']
        return content

    def test_paths_come_from_the_addresses(self, load):
        dataset = load(self.content(), type=OVLVISDataset, data_root='data/coco', data_prefix={'img': ''})
        paths = [entry['img_path'] for entry in dataset.data_list]
        assert paths == ['data/coco/train2017/000000000001.jpg', 'data/coco/val2017/000000000002.jpg']
        assert labels_of(dataset) == {1: [0], 2: [2]}

    def test_all_1203_classes(self, load):
        vocabulary = Vocabulary.from_name('ov_lvis')
        content = self.content()
        content['categories'] = [{'id': i + 1, 'name': name} for i, name in enumerate(vocabulary.names)]
        for annotation, part in zip(content['annotations'], ('base', 'novel'), strict=True):
            annotation['category_id'] = vocabulary.split.index(part) + 1
        dataset = load(content, 'ov_lvis', type=OVLVISDataset, novel='drop')
        assert labels_of(dataset) == {1: [vocabulary.split.index('base')], 2: []}
        assert len(dataset.metainfo['base_classes']) == 866
        del content['categories'][7]
        with pytest.raises(ValueError, match='lists no categories'):
            load(content, 'ov_lvis', type=OVLVISDataset)


def test_objects365_is_sorted_by_id_before_it_is_compared(load):
    content = make_content(NAMES[::-1], [(1, 'a'), (2, 'd')])
    assert labels_of(load(content, NAMES, type=OVObjects365Dataset)) == {1: [0], 2: [3]}
    with pytest.raises(ValueError, match="position 0 is 'a', not 'd'"):
        load(content, NAMES[::-1], type=OVObjects365Dataset)
