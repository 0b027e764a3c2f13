"""Protocols: the files say what is meant, and a mistake in one is named."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import yaml

from densevlm_mm.registry import DATASETS
from densevlm_mm.seg import OVSegDataset
from densevlm_mm.seg.protocols import ProtocolError, list_protocols, read_protocol
from densevlm_mm.vlm import Vocabulary

PROTOCOLS = Path(__file__).parents[2] / 'configs' / 'training_free' / 'protocols'
BENCHMARKS, METHODS = (list_protocols(PROTOCOLS, part) for part in ('data', 'methods'))
SIZES = {
    'ade150': 150, 'ade847': 847, 'cityscapes': 19, 'coco_object': 81, 'coco_stuff': 171, 'ctx459': 459, 'ctx59': 59,
    'ctx60': 60, 'pas20b': 21, 'voc20': 20, 'voc21': 21,
}  # fmt: skip
WITH_BACKGROUND = ('voc21', 'ctx60', 'coco_object')


@pytest.fixture
def data_root(tmp_path) -> Path:
    """What converters write along: the vocabularies of the large sets."""
    for benchmark in ('ade847', 'ctx459'):
        protocol = read_protocol(PROTOCOLS, 'catseg', benchmark)
        names = tuple(f'class {number}' for number in range(SIZES[benchmark]))
        Vocabulary(names, (True,) * len(names)).save(tmp_path / protocol.folder / protocol.vocabulary['file'])
    return tmp_path


@pytest.fixture
def folder(tmp_path) -> Path:
    """A copy to be spoilt."""
    return Path(shutil.copytree(PROTOCOLS, tmp_path / 'protocols'))


def spoil(path: Path, **changes: object) -> Path:
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))
    return path


def test_page_lists_every_data_set():
    """Name, number of classes and of images, and folder, as the files have them."""
    page = (PROTOCOLS.parents[2] / 'docs' / 'segmentation_benchmarks.md').read_text('utf-8')
    rows = re.findall(r'^\| `(\w+)`[^|]*\|[^|]*\| (\d+)[^|]*\| (\d+) \| `([\w/]+)` \|$', page, re.MULTILINE)
    expected = []
    for name in BENCHMARKS:
        protocol = read_protocol(PROTOCOLS, 'densevlm', name)
        expected.append((name, str(SIZES[name]), str(protocol.num_images), protocol.folder))
    assert sorted(rows) == expected


def test_all_benchmarks_and_methods_are_there():
    assert list(SIZES) == BENCHMARKS
    assert METHODS == ['catseg', 'clearclip', 'densevlm', 'sclip', 'vanilla']


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('benchmark', BENCHMARKS)
def test_every_protocol_fits_its_data_set(method, benchmark, data_root):
    """As many classes as label maps have, thresholds where there is a background and only there."""
    protocol = read_protocol(PROTOCOLS, method, benchmark)
    dataset = DATASETS.get(f'densevlm_mm.{protocol.dataset}')
    vocabulary = protocol.read_vocabulary(data_root)
    assert issubclass(dataset, OVSegDataset) and len(vocabulary) == SIZES[benchmark] == dataset.NUM_CLASSES
    preset = dataset.PRESET.get('vocabulary')
    assert preset is None or vocabulary.names == Vocabulary.from_name(preset).names
    assert bool(protocol.threshold) == (method != 'catseg' and benchmark in WITH_BACKGROUND)
    assert (protocol.window is None) == (method == 'catseg')
    assert protocol.prepare and protocol.short_side <= protocol.long_side


def facts(method: str, benchmark: str, *keys: str) -> list[object]:
    protocol = read_protocol(PROTOCOLS, method, benchmark)
    return [getattr(protocol, key) for key in keys]


@pytest.mark.parametrize(('method', 'benchmark', 'expected'), [
    ('sclip', 'voc21', (224, 112, 65, 336, 0.1, 0.1)),
    ('sclip', 'coco_object', (224, 112, 50, 336, 0.1, None)),
    ('sclip', 'ade150', (224, 112, 40, 336, None, None)),
    ('sclip', 'coco_stuff', (224, 112, 40, 448, None, None)),
    ('sclip', 'cityscapes', (224, 112, 40, 560, None, None)),
    ('clearclip', 'voc21', (448, 224, 50, 448, 0.5, None)),
    ('clearclip', 'cityscapes', (224, 224, 50, 448, None, None)),
    ('clearclip', 'coco_object', (448, 224, 50, 448, 0.4, None)),
    ('vanilla', 'voc21', (448, 224, 50, 448, 0.2, None)),
    ('densevlm', 'voc21', (336, 112, 80, 448, 0.4, None)),
    ('densevlm', 'ctx60', (336, 112, 40, 448, 0.15, None)),
    ('densevlm', 'coco_object', (336, 112, 40, 448, 0.2, None)),
    ('densevlm', 'cityscapes', (336, 112, 40, 560, None, None)),
])  # fmt: skip
def test_published_settings(method, benchmark, expected):
    keys = ('window', 'stride', 'logit_scale', 'short_side', 'threshold', 'area_thd')
    assert facts(method, benchmark, *keys) == list(expected)


@pytest.mark.parametrize(('method', 'benchmark', 'name', 'phrases'), [
    ('sclip', 'voc21', 'boat', ('ship',)),
    ('sclip', 'voc21', 'pottedplant', ('pottedplant',)),
    ('sclip', 'cityscapes', 'traffic light', ('trafficlight',)),
    ('densevlm', 'cityscapes', 'traffic light', ('traffic light',)),
    ('densevlm', 'voc20', 'pottedplant', ('potted plant',)),
    ('clearclip', 'voc20', 'person', ('person',)),
    ('vanilla', 'voc21', 'tvmonitor', ('tvmonitor',)),
    ('catseg', 'voc20', 'boat', ('boat',)),
    ('catseg', 'voc20', 'person', ('person',)),
    ('catseg', 'ctx59', 'table', ('diningtable',)),
    ('catseg', 'pas20b', 'tvmonitor', ('tvmonitor',)),
])  # fmt: skip
def test_phrases(method, benchmark, name, phrases, data_root):
    vocabulary = read_protocol(PROTOCOLS, method, benchmark).read_vocabulary(data_root)
    assert vocabulary.synonyms[vocabulary.names.index(name)] == phrases


@pytest.mark.parametrize(('method', 'benchmark', 'words'), [
    ('densevlm', 'voc21', 26), ('sclip', 'coco_object', 25), ('clearclip', 'voc21', 1), ('vanilla', 'coco_object', 1),
    ('sclip', 'ctx60', 1), ('catseg', 'pas20b', 39),
])  # fmt: skip
def test_words_for_background(method, benchmark, words, data_root):
    vocabulary = read_protocol(PROTOCOLS, method, benchmark).read_vocabulary(data_root)
    assert len(vocabulary.background) == words
    index = vocabulary.names.index('background')
    assert index == (20 if benchmark == 'pas20b' else 0)
    assert vocabulary.expanded()[1].count(index) == words


def test_what_is_missing_is_listed(data_root):
    protocol = read_protocol(PROTOCOLS, 'densevlm', 'ade847')
    root = data_root / 'ADE20K_2021_17_01'
    assert protocol.missing(data_root) == [root / 'images_847/validation', root / 'annotations_847/validation']
    for path in protocol.missing(data_root):
        path.mkdir(parents=True)
    assert protocol.missing(data_root) == []


@pytest.mark.parametrize(('path', 'changes', 'message'), [
    ('data/voc20.yaml', {'titel': 'VOC'}, "voc20.yaml: unknown key 'titel'"),
    ('data/voc20.yaml', {'num_images': '1449'}, 'voc20.yaml, num_images: .* is a str, expected int'),
    ('data/voc20.yaml', {'ignore_index': True}, 'voc20.yaml, ignore_index: True is a bool, expected int'),
    ('data/voc20.yaml', {'_base': 'voc22'}, 'there is no .*voc22.yaml'),
    ('data/voc20.yaml', {'_base': 'voc20'}, 'voc20.yaml: inherits from itself'),
    ('data/voc20.yaml', {'image_dir': None}, r"\['image_dir'\] missing"),
    ('data/voc20.yaml', {'dataset': 'VOC'}, "dataset: there is no type 'VOC'"),
    ('methods/sclip.yaml', {'windows': 224}, "sclip.yaml: unknown key 'windows'"),
    ('methods/sclip.yaml', {'benchmarks': {'voc22': {}}}, "sclip.yaml, benchmarks: there is no 'voc22'"),
    ('methods/sclip.yaml', {'benchmarks': {'voc20': {'dense_mode': 'qq'}}}, "voc20: unknown key 'dense_mode'"),
    ('methods/sclip.yaml', {'benchmarks': {'voc20': {'vocabulary': {'name': 'voc19'}}}}, "unknown vocabulary 'voc19'"),
    ('methods/sclip.yaml', {'benchmarks': {'voc20': None}}, 'benchmarks.voc20: is no mapping'),
    ('methods/sclip.yaml', {'threshold': 0.1}, 'sclip, voc20: .* need a class named'),
    ('methods/sclip.yaml', {'threshold': 1.5}, 'threshold: cannot be 1.5'),
    ('methods/sclip.yaml', {'window': 0}, 'window: cannot be 0'),
    ('methods/sclip.yaml', {'stride': 448}, 'stride: cannot be 448'),
])  # fmt: skip
def test_mistakes_are_named(folder, path, changes, message):
    spoil(folder / path, **changes)
    with pytest.raises(ProtocolError, match=message):
        read_protocol(folder, 'sclip', 'voc20').read_vocabulary(folder)


@pytest.mark.parametrize(('text', 'message'), [
    ('window: 224\nwindow: 336\n', "the key 'window' stands twice"),
    ('window: [224\n', 'densevlm.yaml: while parsing'),
    ('224\n', 'densevlm.yaml: is no mapping'),
    ('window: !!python/object/apply:os.getcwd []\n', 'could not determine a constructor'),
])  # fmt: skip
def test_files_that_are_none(folder, text, message):
    (folder / 'methods' / 'densevlm.yaml').write_text(text)
    with pytest.raises(ProtocolError, match=message):
        read_protocol(folder, 'densevlm', 'voc20')


def test_unknown_names_are_answered_with_the_known_ones():
    with pytest.raises(ProtocolError, match=r"there is no .*maskclip.yaml; there are \['catseg'"):
        read_protocol(PROTOCOLS, 'maskclip', 'voc20')
