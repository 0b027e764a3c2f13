"""Converters of the segmentation benchmarks: on tiny files as they are published, read back by the data sets."""

from __future__ import annotations

import ast
import json
import os
import pickle
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from PIL import Image

from densevlm_mm.datasets.miniworld import CATEGORIES
from densevlm_mm.seg import (
    ADE847SegDataset,
    COCOObjectSegDataset,
    Context60SegDataset,
    Context459SegDataset,
    LoadLabelMap,
)
from densevlm_mm.vlm import Vocabulary, build_vocabulary

TOOLS = Path(__file__).parents[2] / 'tools' / 'dataset_converters'
PIPELINE = [LoadImageFromFile(), LoadLabelMap()]


@pytest.fixture(scope='module')
def tools() -> dict[str, dict]:
    names = ('coco_stuff', 'pascal_context', 'ade20k_full', 'panoptic_to_semantic')
    return {name: runpy.run_path(str(TOOLS / f'{name}.py')) for name in names}


@pytest.fixture
def convert(tools) -> Callable[..., int]:
    return lambda name, *arguments: tools[name]['main']([str(argument) for argument in arguments])


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def times(folder: Path) -> dict[str, int]:
    """When each file was written, last."""
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob('*') if path.is_file()}


class TestCOCOStuff:
    VALUES = np.array([[0, 10, 12, 89], [91, 181, 255, 255]], np.uint8)  # ids 1, 11, 13, 90 and 92, 182
    STUFF = [[0, 10, 11, 79], [80, 170, 255, 255]]
    OBJECT = [[1, 11, 12, 80], [0, 0, 0, 0]]

    @pytest.fixture
    def folder(self, tmp_path) -> Path:
        for name in ('000000000139', '000000000285'):
            save(tmp_path / 'annotations' / 'val2017' / f'{name}.png', self.VALUES)
            save(tmp_path / 'images' / 'val2017' / f'{name}.jpg', np.zeros((2, 4, 3), np.uint8))
        return tmp_path / 'annotations' / 'val2017'

    def test_labels(self, convert, folder):
        assert convert('coco_stuff', folder) == 0
        assert read(folder / '000000000139_labelTrainIds.png').tolist() == self.STUFF
        assert read(folder / '000000000139_instanceTrainIds.png').tolist() == self.OBJECT
        prefix = {'img_path': 'images/val2017', 'seg_map_path': 'annotations/val2017'}
        dataset = COCOObjectSegDataset(data_root=str(folder.parents[1]), data_prefix=prefix, pipeline=PIPELINE)
        assert len(dataset) == 2 and dataset[1]['gt_seg_map'].tolist() == self.OBJECT

    def test_table_is_mmsegs(self, tools):
        mmseg = pytest.importorskip('mmseg')
        source = Path(mmseg.__file__).parent / '.mim/tools/dataset_converters/coco_stuff164k.py'
        tree = ast.parse(source.read_text())
        (published,) = (
            ast.literal_eval(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign) and node.targets[0].id == 'clsID_to_trID'
        )
        for kind in ('stuff', 'object'):
            table = tools['coco_stuff']['lookup_table'](kind)
            assert {value for value in range(256) if table[value] >= 0} == set(published)
        stuff = tools['coco_stuff']['lookup_table']('stuff')
        assert {value: stuff[value] for value in published} == published

    def test_conversion_goes_on_where_it_was_and_never_reads_its_own(self, convert, folder):
        convert('coco_stuff', folder, '--labels', 'stuff')
        before = times(folder)
        (folder / '000000000139_labelTrainIds.png').write_bytes(b'half')
        assert convert('coco_stuff', folder) == 0
        after = times(folder)
        assert len(after) == 6 and {path for path in before if after[path] == before[path]} == {
            path for path in before if not path.endswith('139_labelTrainIds.png')
        }

    @pytest.mark.parametrize(
        ('values', 'message'),
        [
            (np.full((2, 2), 11, np.uint8), 'holds the value 11, which is no category'),
            (np.full((2, 2), 254, np.uint8), 'holds the value 254'),
            (np.zeros((2, 2, 3), np.uint8), 'is no map of 8 bits'),
        ],
    )
    def test_other_files_are_errors(self, convert, folder, capsys, values, message):
        save(folder / 'b.png', values)
        assert convert('coco_stuff', folder) == 2
        assert f'b.png: {message}' in capsys.readouterr().err
        assert convert('coco_stuff', folder / 'nowhere') == 2
        assert 'nowhere: no .png file' in capsys.readouterr().err


class TestPascalContext:
    NAMES = sorted({*build_vocabulary('pascal_context59').names, *(f'zz{i}' for i in range(400))})
    STEMS = ('2008_000002', '2008_000003')

    @pytest.fixture
    def root(self, tmp_path) -> Path:
        scipy_io = pytest.importorskip('scipy.io')
        (tmp_path / 'labels.txt').write_text('\n'.join(f'{i}: {name}' for i, name in enumerate(self.NAMES, 1)))
        (tmp_path / 'ImageSets' / 'Main').mkdir(parents=True)
        (tmp_path / 'ImageSets' / 'Main' / 'val.txt').write_text('\n'.join(self.STEMS) + '\n')
        (tmp_path / 'trainval').mkdir()
        for stem in self.STEMS:
            scipy_io.savemat(tmp_path / 'trainval' / f'{stem}.mat', {'LabelMap': self.label_map().astype(np.uint16)})
            save(tmp_path / 'JPEGImages' / f'{stem}.jpg', np.zeros((2, 3, 3), np.uint8))
        return tmp_path

    def label_map(self) -> np.ndarray:
        return np.array([[0, 1, self.NAMES.index('wood') + 1], [459, 300, 2]])

    def read(self, root: Path, kind: type, folder: str, **options: object) -> list:
        dataset = kind(
            'ImageSets/Main/val.txt',
            data_root=str(root),
            data_prefix={'img_path': 'JPEGImages', 'seg_map_path': folder},
            pipeline=PIPELINE,
            **options,
        )
        assert len(dataset) == 2
        return dataset[0]['gt_seg_map'].tolist()

    def test_459_classes(self, convert, root):
        assert convert('pascal_context', root, '--classes', 459) == 0
        options = {'vocabulary': str(root / 'pascal_context459.json')}
        found = self.read(root, Context459SegDataset, 'SegmentationClassContext459', **options)
        assert found == [[65535, 0, self.NAMES.index('wood')], [458, 299, 1]]
        vocabulary = Vocabulary.from_file(root / 'pascal_context459.json')
        assert list(vocabulary.names) == self.NAMES and vocabulary.num_things == 40

    def test_59_classes_and_background(self, convert, root):
        assert convert('pascal_context', root, '--classes', 60) == 0
        names = build_vocabulary('pascal_context60').names
        known = {i + 1: names.index(name) for i, name in enumerate(self.NAMES) if name in names}
        expected = [[known.get(value, 0) for value in row] for row in self.label_map().tolist()]
        assert expected[0] == [0, 1, 59]
        assert self.read(root, Context60SegDataset, 'SegmentationClassContext60') == expected

    def test_a_second_run_writes_no_label_map_again(self, convert, root):
        convert('pascal_context', root, '--classes', 459)
        before = times(root / 'SegmentationClassContext459')
        convert('pascal_context', root, '--classes', 459)
        assert times(root / 'SegmentationClassContext459') == before

    def test_errors_say_what_is_missing(self, convert, root, capsys):
        (root / 'trainval' / '2008_000003.mat').write_bytes(b'damaged')
        assert convert('pascal_context', root, '--classes', 459) == 2
        assert '2008_000003.mat: holds no LabelMap that can be read' in capsys.readouterr().err
        assert not (root / 'pascal_context459.json').exists()
        (root / 'trainval' / '2008_000003.mat').unlink()
        assert convert('pascal_context', root, '--classes', 459) == 2
        assert '2008_000003.mat: there is no such file; unpack trainval.tar.gz' in capsys.readouterr().err
        assert convert('pascal_context', root, '--classes', 60, '--images', root / 'train.txt') == 2
        assert 'train.txt: there is no such list' in capsys.readouterr().err

    def test_label_maps_and_names_of_another_release_are_errors(self, convert, root, capsys):
        from scipy.io import savemat

        savemat(root / 'trainval' / '2008_000003.mat', {'LabelMap': np.array([[1, 460]], np.uint16)})
        assert convert('pascal_context', root, '--classes', 60) == 2
        assert '2008_000003.mat: holds class 460, but there are 459' in capsys.readouterr().err
        (root / 'labels.txt').write_text('\n'.join(f'{i}: name {i}' for i in range(1, 460)))
        assert convert('pascal_context', root, '--classes', 60) == 2
        assert "labels.txt lists no ['aeroplane'" in capsys.readouterr().err
        (root / 'labels.txt').write_text('1: cat\n2: dog\n')
        assert convert('pascal_context', root, '--classes', 459) == 2
        assert 'labels.txt: lists 2 classes; take that of the full release, with 459' in capsys.readouterr().err

    def test_without_scipy_the_error_says_so(self, convert, root, capsys, monkeypatch):
        monkeypatch.setitem(sys.modules, 'scipy.io', None)
        assert convert('pascal_context', root, '--classes', 459) == 2
        assert 'pip install scipy' in capsys.readouterr().err


class Payload:
    """A pickle that would leave a trace, were it loaded without care."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.trace),)


# The classes of an index, number 1 first. The benchmark has 901, 900, ... as 0, 1, ... and the first three at its end.
OBJECTS = ['apple', 'bag', 'bag, handbag', *(f'name {i}, other' for i in range(3, 900)), 'wall']
FIRST, LAST = OBJECTS[:3], OBJECTS[:56:-1]
CLASSES = [
    *({'name': name, 'id': 901 - label, 'trainId': label} for label, name in enumerate(LAST)),
    *({'name': name, 'id': i + 1, 'trainId': 844 + i} for i, name in enumerate(FIRST)),
]


class TestADE20KFull:
    @pytest.fixture
    def root(self, tmp_path) -> Path:
        root = tmp_path / 'ade20k_full'
        images = {'ADE_val_00000001.jpg': 'a', 'ADE_val_00000002.jpg': 'b', 'ADE_train_00000001.jpg': 'a'}
        folders = [f'ADE20K_2021_17_01/images/ADE/{folder}' for folder in images.values()]
        index = {
            'filename': list(images),
            'folder': folders,
            'objectnames': OBJECTS,
            'objectPresence': np.zeros((3, 2), np.float32),
            'scene': np.array(['/a', '/b'], dtype=object),
            'count': np.float64(3),
        }
        root.mkdir()
        (root / 'index_ade20k.pkl').write_bytes(pickle.dumps(index))
        for (name, folder), size in zip(images.items(), [(20, 30), (1030, 1545), (4, 4)], strict=True):
            seg = np.zeros((*size, 3), np.uint8)
            seg[: size[0] // 2] = self.color(901)
            seg[size[0] // 2 :, : size[1] // 3] = self.color(2)
            seg[size[0] // 2 :, -1] = self.color(30)
            save(root / 'images' / 'ADE' / folder / name, np.full((*size, 3), 90, np.uint8))
            save(root / 'images' / 'ADE' / folder / f'{Path(name).stem}_seg.png', seg)
        (root / 'list.py').write_text(f'import os\nos.mkdir({str(root / "executed")!r})\nCLASSES = {CLASSES!r}\n')
        return root

    @staticmethod
    def color(number: int) -> tuple[int, int, int]:
        return number // 256 * 10, number % 256, 7  # blue is the instance

    def run(self, convert: Callable[..., int], root: Path, *arguments: object) -> int:
        return convert('ade20k_full', root, '--classes', f'{root / "list.py"}::CLASSES', *arguments)

    def test_labels_and_images(self, convert, root):
        assert self.run(convert, root) == 0
        assert not (root / 'executed').exists()
        dataset = ADE847SegDataset(
            data_root=str(root),
            data_prefix={'img_path': 'images_847/validation', 'seg_map_path': 'annotations_847/validation'},
            vocabulary=str(root / 'ade847.json'),
            pipeline=PIPELINE,
        )
        assert len(dataset) == 2
        labels = dataset[0]['gt_seg_map']
        assert labels.shape == (20, 30) and (labels[:10] == 0).all() and (labels[10:, :10] == 845).all()
        assert (labels[10:, 10:] == 65535).all()
        assert dataset[1]['gt_seg_map'].shape == (512, 768) == dataset[1]['ori_shape']
        assert set(np.unique(dataset[1]['gt_seg_map'])) == {0, 845, 65535}
        original = root / 'images' / 'ADE' / 'a' / 'ADE_val_00000001.jpg'
        assert (root / 'images_847' / 'validation' / original.name).read_bytes() == original.read_bytes()

    def test_vocabulary_has_first_synonyms_for_prompts(self, convert, root):
        self.run(convert, root)
        vocabulary = Vocabulary.from_file(root / 'ade847.json')
        assert len(vocabulary) == 847 and vocabulary.names[844:] == ('apple', 'bag', 'bag, handbag')
        assert vocabulary.synonyms[-1] == ('bag',) and vocabulary.synonyms[1] == ('name 899',)
        assert vocabulary.expanded()[1] == tuple(range(847)) and vocabulary.is_thing[846]

    def test_a_second_run_writes_nothing_again(self, convert, root):
        self.run(convert, root)
        before = times(root / 'annotations_847') | times(root / 'images_847')
        self.run(convert, root)
        assert times(root / 'annotations_847') | times(root / 'images_847') == before

    def test_training_images_have_their_own_folders(self, convert, root):
        assert self.run(convert, root, '--split', 'training') == 0
        assert [path.name for path in (root / 'annotations_847').rglob('*.png')] == ['ADE_train_00000001.png']

    def test_an_index_that_would_run_code_is_refused(self, convert, root, tmp_path, capsys):
        content = pickle.loads((root / 'index_ade20k.pkl').read_bytes())
        (root / 'index_ade20k.pkl').write_bytes(pickle.dumps({**content, 'scene': Payload(tmp_path / 'trace')}))
        assert self.run(convert, root) == 2
        error = capsys.readouterr().err
        assert 'index_ade20k.pkl: is no index of ADE20K' in error and 'mkdir' in error and 'refused' in error
        assert not (tmp_path / 'trace').exists()

    def test_a_list_of_another_release_is_refused(self, convert, root, capsys):
        shifted = [{**entry, 'id': entry['id'] + 1} for entry in CLASSES]
        (root / 'list.py').write_text(f'CLASSES = {shifted!r}\n')
        assert self.run(convert, root) == 2
        assert 'classes are called otherwise in the index: class 902 is' in capsys.readouterr().err
        (root / 'list.py').write_text(f'CLASSES = {[*CLASSES[:846], {**CLASSES[846], "name": "sack"}]!r}\n')
        assert self.run(convert, root) == 0
        assert "note: class 3 is 'sack' in the list, but 'bag, handbag' in the index" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ('entries', 'message'),
        [
            ([{'name': 'a', 'id': 1}], 'need "name", "id" and "trainId" (KeyError(\'trainId\'))'),
            ([{'name': 'a', 'id': 1, 'trainId': 1}], '"trainId" must count from 0'),
            ([{'name': n, 'id': 1, 'trainId': i} for i, n in enumerate('ab')], '"id" from 1 without a repetition'),
        ],
    )
    def test_unusable_lists_are_errors(self, convert, root, capsys, entries, message):
        (root / 'list.py').write_text(f'CLASSES = {entries!r}\n')
        assert self.run(convert, root) == 2
        assert message in capsys.readouterr().err

    def test_missing_and_wrong_files_are_named(self, convert, root, capsys):
        seg = root / 'images' / 'ADE' / 'a' / 'ADE_val_00000001_seg.png'
        save(seg, np.zeros((20, 31, 3), np.uint8))
        assert self.run(convert, root) == 2
        assert '_seg.png: is RGB of 31x20 px; RGB of the size of its image, 30x20 px' in capsys.readouterr().err
        assert not (root / 'ade847.json').exists()
        seg.unlink()
        assert self.run(convert, root) == 2
        assert 'ADE_val_00000001_seg.png' in capsys.readouterr().err
        (root / 'index_ade20k.pkl').unlink()
        assert self.run(convert, root) == 2
        assert 'index_ade20k.pkl: there is no such file; unpack' in capsys.readouterr().err


class TestPanoptic:
    def test_the_mini_world(self, convert, miniworld, tmp_path):
        annotations = miniworld / 'annotations' / 'panoptic_val2017.json'
        assert convert('panoptic_to_semantic', annotations, '-o', tmp_path / 'semantic') == 0
        entries = json.loads(annotations.read_text())['annotations']
        assert len(entries) == 8
        label_of = {category.segment_id: label for label, category in enumerate(CATEGORIES)}
        for entry in entries:
            ids = read(annotations.with_suffix('') / entry['file_name']).astype(int) @ [1, 256, 256**2]
            expected = np.vectorize(label_of.get)(ids)
            np.testing.assert_array_equal(read(tmp_path / 'semantic' / entry['file_name']), expected)

    def test_a_vocabulary_chooses_and_orders(self, convert, miniworld, tmp_path):
        annotations = miniworld / 'annotations' / 'panoptic_val2017.json'
        names = [category.name for category in CATEGORIES]
        Vocabulary(('sky', 'car', 'grass'), (False, True, False)).save(tmp_path / 'three.json')
        convert('panoptic_to_semantic', annotations, '-o', tmp_path / 'all')
        assert (
            convert(
                'panoptic_to_semantic', annotations, '-o', tmp_path / 'some', '--vocabulary', tmp_path / 'three.json'
            )
            == 0
        )
        table = np.full(256, 255)
        table[[names.index(name) for name in ('sky', 'car', 'grass')]] = range(3)
        for path in (tmp_path / 'all').iterdir():
            np.testing.assert_array_equal(read(tmp_path / 'some' / path.name), table[read(path)])

    def test_beside_the_panoptic_maps_by_default(self, tools, tmp_path):
        parse = tools['panoptic_to_semantic']['parse_args']
        args = parse([str(tmp_path / 'annotations' / 'panoptic_val2017.json')])
        assert (args.maps.name, args.out.name) == ('panoptic_val2017', 'semantic_val2017')
        with pytest.raises(SystemExit):
            parse([str(tmp_path / 'labels.json')])

    def test_errors(self, convert, miniworld, tmp_path, capsys):
        annotations = miniworld / 'annotations' / 'panoptic_val2017.json'
        arguments = ('-o', tmp_path / 'out', '--maps', tmp_path / 'maps')
        assert convert('panoptic_to_semantic', annotations, *arguments, '--vocabulary', 'voc20') == 2
        assert "lists no categories ['aeroplane'" in capsys.readouterr().err
        first = json.loads(annotations.read_text())['annotations'][0]['file_name']
        save(tmp_path / 'maps' / first, np.full((48, 48, 3), 1, np.uint8))
        assert convert('panoptic_to_semantic', annotations, *arguments) == 2
        assert f'{first}: holds segment 65793, which the annotation file does not list' in capsys.readouterr().err
        (tmp_path / 'empty.json').write_text('{}')
        assert convert('panoptic_to_semantic', tmp_path / 'empty.json', *arguments) == 2
        assert "empty.json: is no COCO-panoptic annotation file (KeyError('categories'))" in capsys.readouterr().err
