"""Data sets with a vocabulary: labels are its positions, in the files that the benchmarks are published in."""

from __future__ import annotations

from pathlib import Path

import mmseg.datasets
import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from PIL import Image

from densevlm_mm import seg
from densevlm_mm.datasets.miniworld import STUFF, THINGS
from densevlm_mm.datasets.semantic_maps import convert_panoptic
from densevlm_mm.registry import DATASETS
from densevlm_mm.seg import LoadLabelMap, OVSegDataset
from densevlm_mm.vlm import build_vocabulary

PREFIX = {'img_path': 'images', 'seg_map_path': 'labels'}
PIPELINE = [LoadImageFromFile(), LoadLabelMap()]
NAMES = {459: [f'class {i}' for i in range(459)], 847: [f'class {i}' for i in range(847)]}
# type: values in a file, and their labels
BENCHMARKS = {
    'VOC21SegDataset': ([0, 1, 20, 255], [0, 1, 20, 255]),
    'VOC20SegDataset': ([0, 1, 20, 255], [255, 0, 19, 255]),
    'VOC20bSegDataset': ([0, 1, 20, 255], [20, 0, 19, 255]),
    'Context60SegDataset': ([0, 1, 59, 255], [0, 1, 59, 255]),
    'Context59SegDataset': ([0, 1, 59, 255], [255, 0, 58, 255]),
    'Context459SegDataset': ([0, 255, 458, 65535], [0, 255, 458, 65535]),
    'COCOObjectSegDataset': ([0, 1, 80, 0], [0, 1, 80, 0]),
    'COCOStuffSegDataset': ([0, 1, 170, 255], [0, 1, 170, 255]),
    'ADE150SegDataset': ([0, 1, 150, 2], [255, 0, 149, 1]),
    'ADE847SegDataset': ([0, 255, 846, 65535], [0, 255, 846, 65535]),
    'CityscapesSegDataset': ([0, 1, 18, 255], [0, 1, 18, 255]),
}
MMSEG = {
    'VOC21SegDataset': 'PascalVOCDataset',
    'Context60SegDataset': 'PascalContextDataset',
    'Context59SegDataset': 'PascalContextDataset59',
    'COCOStuffSegDataset': 'COCOStuffDataset',
    'ADE150SegDataset': 'ADE20KDataset',
    'CityscapesSegDataset': 'CityscapesDataset',
}


def write(root: Path, values: list[int], *, image: str = '.png', labels: str = '.png', names: str = 'ab') -> Path:
    """One image per name, with a label map of one row."""
    dtype = np.uint16 if max(values) > 255 else np.uint8
    for folder, suffix, content in (
        ('images', image, np.zeros((1, len(values), 3), np.uint8)),
        ('labels', labels, np.array([values], dtype)),
    ):
        (root / folder).mkdir(exist_ok=True)
        for name in names:
            Image.fromarray(content).save(root / folder / f'{name}{suffix}')
    return root


def build(root: Path, kind: str = 'OVSegDataset', **options: object) -> OVSegDataset:
    config = {'data_root': str(root), 'data_prefix': PREFIX, 'pipeline': PIPELINE, 'test_mode': True, **options}
    return DATASETS.build({'type': f'densevlm_mm.{kind}', **config})


class TestBenchmarks:
    @pytest.mark.parametrize('kind', BENCHMARKS)
    def test_labels(self, tmp_path, kind):
        cls, (values, labels) = getattr(seg, kind), BENCHMARKS[kind]
        suffixes = {'image': cls.PRESET.get('img_suffix', '.jpg'), 'labels': cls.PRESET.get('seg_map_suffix', '.png')}
        options = {'vocabulary': NAMES[cls.NUM_CLASSES]} if cls.NUM_CLASSES in NAMES else {}
        dataset = build(write(tmp_path, values, **suffixes), kind, **options)
        assert len(dataset) == 2 and len(dataset.metainfo['classes']) == cls.NUM_CLASSES
        assert dataset[0]['gt_seg_map'].tolist() == [labels]
        assert len(dataset.metainfo['palette']) == cls.NUM_CLASSES

    @pytest.mark.parametrize('kind', MMSEG)
    def test_are_mmsegs(self, kind):
        ours = DATASETS.build({'type': f'densevlm_mm.{kind}', 'lazy_init': True}).metainfo
        theirs = getattr(mmseg.datasets, MMSEG[kind]).METAINFO
        assert list(ours['classes']) == list(theirs['classes'])
        assert ours['palette'] == [list(colour) for colour in theirs['palette']]

    def test_all_queries_of_pas20b_beyond_the_20th_are_its_last_class(self):
        vocabulary = build_vocabulary('voc20b')
        phrases, classes = vocabulary.expanded()
        assert classes == (*range(20), *[20] * 39)
        others = set(build_vocabulary('pascal_context59').names) - set(build_vocabulary('voc20').names) - {'table'}
        assert set(phrases[20:]) == others

    def test_another_vocabulary_of_as_many_classes_serves(self):
        names = [f'thing {i}' for i in range(20)]
        dataset = DATASETS.build({'type': 'densevlm_mm.VOC20SegDataset', 'vocabulary': names, 'lazy_init': True})
        assert dataset.metainfo['classes'] == tuple(names)
        with pytest.raises(ValueError, match='VOC20SegDataset has label maps of 20 classes, but the vocabulary has 21'):
            DATASETS.build({'type': 'densevlm_mm.VOC20SegDataset', 'vocabulary': 'voc21', 'lazy_init': True})


class TestMetainfo:
    def test_is_the_vocabulary_s(self, tmp_path):
        vocabulary = {'things': ['a', 'b'], 'stuff': ['c'], 'base': ['a', 'c'], 'novel': ['b']}
        metainfo = build(write(tmp_path, [0]), vocabulary=vocabulary, img_suffix='.png', ignore_index=-1).metainfo
        expected = {
            'classes': ('a', 'b', 'c'),
            'is_thing': (True, True, False),
            'base_classes': ('a', 'c'),
            'novel_classes': ('b',),
            'ignore_index': -1,
            'reduce_zero_label': False,
            'label_map': None,
        }
        assert {key: metainfo[key] for key in metainfo if key != 'palette'} == expected

    def test_has_a_palette_of_its_own_or_always_the_same(self, tmp_path):
        options = {'vocabulary': ['a', 'b'], 'img_suffix': '.png'}
        root = write(tmp_path, [0])
        assert build(root, palette=[[1, 2, 3], [4, 5, 6]], **options).metainfo['palette'] == [[1, 2, 3], [4, 5, 6]]
        assert build(root, **options).metainfo['palette'] == build(root, **options).metainfo['palette']
        with pytest.raises(ValueError, match='the palette has 1 colours for 2 classes'):
            build(root, palette=[[1, 2, 3]], **options)


class TestErrors:
    @pytest.mark.parametrize(
        ('options', 'message'),
        [
            ({}, r'OVSegDataset needs vocabulary=\.\.\.'),
            ({'vocabulary': NAMES[459]}, r'ignore_index 255 is a label, .* 0\.\.458; set another, such as 65535'),
            ({'vocabulary': 'voc20', 'ignore_index': 20, 'zero_label': 'ignore'}, r'20 is a label, .* 0\.\.20'),
            ({'vocabulary': 'voc21', 'ignore_index': 20}, r'20 is a label, .* 0\.\.20; set another, such as 255'),
            ({'vocabulary': 'voc21', 'zero_label': 'drop'}, r"zero_label must be one of .*, got 'drop'"),
            ({'reduce_zero_label': True}, "OVSegDataset takes no reduce_zero_label=: give zero_label='ignore'"),
            ({'metainfo': {'classes': ['a']}}, 'OVSegDataset takes no metainfo=: give vocabulary='),
        ],
    )
    def test_of_options(self, options, message):
        with pytest.raises(ValueError, match=message):
            OVSegDataset(lazy_init=True, **options)

    def test_an_ignored_value_just_beyond_the_labels_will_do(self):
        assert OVSegDataset(vocabulary=NAMES[459], ignore_index=459, lazy_init=True).ignore_index == 459

    def test_missing_files_are_named(self, tmp_path):
        options = {'vocabulary': 'voc21', 'img_suffix': '.png'}
        with pytest.raises(FileNotFoundError, match=r'images: there is no such folder; docs/segmentation_data\.md'):
            build(tmp_path, **options)
        write(tmp_path, [0])
        with pytest.raises(FileNotFoundError, match=r'images: no image \*\.jpg in there'):
            build(tmp_path, vocabulary='voc21')
        with pytest.raises(FileNotFoundError, match=r'val\.txt: there is no such list of images'):
            build(tmp_path, ann_file='val.txt', **options)
        with pytest.raises(FileNotFoundError, match=r'labels/a\.tif: there is no such file, the first of 2'):
            build(tmp_path, seg_map_suffix='.tif', **options)
        (tmp_path / 'val.txt').write_text('c\nb\n')
        with pytest.raises(FileNotFoundError, match=r'images/c\.png: there is no such file, the first of 2'):
            build(tmp_path, ann_file='val.txt', **options)


def test_a_list_chooses_the_images(tmp_path):
    root = write(tmp_path, [0, 1], names='abc')
    (root / 'val.txt').write_text('c\nb\n')
    dataset = build(root, vocabulary='voc21', img_suffix='.png', ann_file='val.txt')
    assert [Path(dataset.get_data_info(i)['img_path']).stem for i in range(2)] == ['c', 'b']


def test_of_the_mini_world(miniworld, tmp_path):
    annotations = miniworld / 'annotations' / 'panoptic_val2017.json'
    convert_panoptic(annotations, annotations.with_suffix(''), tmp_path)
    prefix = {'img_path': 'val2017', 'seg_map_path': str(tmp_path)}
    dataset = build(miniworld, vocabulary=str(annotations), data_prefix=prefix)
    assert dataset.metainfo['classes'] == (*THINGS, *STUFF) and len(dataset) == 8
    assert sum(dataset.metainfo['is_thing']) == len(THINGS)
    found = set().union(*(np.unique(dataset[i]['gt_seg_map']).tolist() for i in range(8)))
    assert found <= set(range(18)) and len(found) > 10
