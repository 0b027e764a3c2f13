"""tools/dataset_converters/ov_coco.py and ov_lvis.py: what goes, what stays, and that no label ever shifts."""

from __future__ import annotations

import copy
import json
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from densevlm_mm.datasets.open_vocabulary import keep_labels
from densevlm_mm.vlm import Vocabulary, build_vocabulary

TOOLS = Path(__file__).parents[2] / 'tools' / 'dataset_converters'
NAMES = ['a', 'b', 'c', 'd', 'e', 'f']


@pytest.fixture(scope='module')
def convert() -> Callable[..., int]:
    """Runs a converter."""
    mains = {name: runpy.run_path(str(TOOLS / f'{name}.py'))['main'] for name in ('ov_coco', 'ov_lvis')}
    return lambda name, *arguments: mains[name]([str(argument) for argument in arguments])


@st.composite
def contents(draw) -> tuple[dict, Vocabulary]:
    """An annotation file with categories in any order, and a vocabulary of some of them in any order."""
    listed = draw(st.permutations(NAMES))
    chosen = draw(st.permutations(NAMES))[: draw(st.integers(1, len(NAMES)))]
    parts = draw(st.lists(st.sampled_from(['base', 'novel', None]), min_size=len(chosen), max_size=len(chosen)))
    parts[0] = 'base'
    ids = dict(zip(listed, draw(st.permutations(range(1, 20))), strict=False))
    images = draw(st.lists(st.integers(0, 30), unique=True, min_size=1, max_size=5))
    objects = draw(st.lists(st.tuples(st.sampled_from(images), st.sampled_from(NAMES)), max_size=12))
    content = {
        'info': {'year': 2017},
        'images': [{'id': image, 'file_name': f'{image}.jpg'} for image in images],
        'annotations': [
            {'id': 100 + i, 'image_id': image, 'category_id': ids[name]} for i, (image, name) in enumerate(objects)
        ],
        'categories': [{'id': ids[name], 'name': name, 'supercategory': name.upper()} for name in listed],
    }
    return content, Vocabulary(tuple(chosen), (True,) * len(chosen), split=tuple(parts))


def class_names(content: dict) -> dict[int, str]:
    names = {category['id']: category['name'] for category in content['categories']}
    return {annotation['id']: names[annotation['category_id']] for annotation in content['annotations']}


@given(contents(), st.sampled_from(['base', 'all']), st.sampled_from(['all', 'labelled', 'complete']))
def test_no_label_ever_shifts(case, keep, images):
    content, vocabulary = case
    before = copy.deepcopy(content)
    result = keep_labels(content, vocabulary, keep=keep, images=images)
    assert content == before
    # labels are positions in the vocabulary, whatever is left, and every annotation is of the class that it was of
    assert tuple(category['name'] for category in result['categories']) == vocabulary.names
    assert all(category in before['categories'] for category in result['categories'])
    assert class_names(result).items() <= class_names(before).items()
    # exactly the annotations that were asked for, of the images that are left
    parts = {'base'} if keep == 'base' else {'base', 'novel'}
    wanted = {name for name, part in zip(vocabulary.names, vocabulary.split, strict=True) if part in parts}
    left = {image['id'] for image in result['images']}
    labels = {a['id']: a for a in before['annotations'] if class_names(before)[a['id']] in wanted}
    assert result['annotations'] == [a for a in labels.values() if a['image_id'] in left]
    labelled = {a['image_id'] for a in labels.values()}
    reduced = {a['image_id'] for a in before['annotations'] if a['id'] not in labels}
    every = {image['id'] for image in before['images']}
    assert left == {'all': every, 'labelled': labelled, 'complete': every - reduced}[images]
    assert [image for image in before['images'] if image['id'] in left] == result['images']
    assert result['info'] == before['info']
    # doing it again changes nothing
    assert keep_labels(result, vocabulary, keep=keep, images=images) == result


def test_without_a_split_all_means_every_class():
    content = {'images': [{'id': 1}], 'annotations': [{'id': 1, 'image_id': 1, 'category_id': 7}]}
    content['categories'] = [{'id': 7, 'name': 'a'}, {'id': 3, 'name': 'b'}]
    assert keep_labels(content, Vocabulary(('a', 'b'), (True, True)), keep='all') == content
    with pytest.raises(ValueError, match='no base classes'):
        keep_labels(content, Vocabulary(('a', 'b'), (True, True)), keep='base')


@pytest.fixture
def coco(tmp_path) -> Path:
    """COCO's 80 categories, their ids with gaps; images of a base, a novel and a further class, and an empty one."""
    names = build_vocabulary('ov_coco').names
    categories = [{'id': i + 1 + i // 11, 'name': name} for i, name in enumerate(names)]
    ids = {category['name']: category['id'] for category in categories}
    objects = [(1, 'person'), (1, 'cat'), (2, 'cat'), (3, 'stop sign')]
    annotations = [
        {'id': i, 'image_id': image, 'category_id': ids[name], 'bbox': [0, 0, 4, 4], 'area': 16, 'iscrowd': 0}
        for i, (image, name) in enumerate(objects)
    ]
    content = {'images': [{'id': i} for i in (1, 2, 3, 4)], 'annotations': annotations, 'categories': categories}
    (tmp_path / 'instances.json').write_text(json.dumps(content))
    return tmp_path / 'instances.json'


@pytest.mark.parametrize(
    ('options', 'images', 'annotations'),
    [
        (['--keep', 'base'], [1], [0]),
        (['--keep', 'all'], [1, 2], [0, 1, 2]),
        (['--keep', 'base', '--images', 'all'], [1, 2, 3, 4], [0]),
        (['--keep', 'all', '--images', 'complete'], [1, 2, 4], [0, 1, 2]),
    ],
)
def test_coco(convert, coco, tmp_path, capsys, options, images, annotations):
    out = tmp_path / 'new' / 'out.json'
    assert convert('ov_coco', coco, '-o', out, *options) == 0
    content = json.loads(out.read_text())
    assert [image['id'] for image in content['images']] == images
    assert [annotation['id'] for annotation in content['annotations']] == annotations
    assert content['categories'] == json.loads(coco.read_text())['categories']
    said = f'{len(images)} of 4 images, {len(annotations)} of 4 annotations, 80 of 80 categories'
    assert capsys.readouterr().out == f'{out}: {said}\n'
    first = out.read_bytes()
    assert convert('ov_coco', out, '-o', tmp_path / 'again.json', *options) == 0
    assert convert('ov_coco', coco, '-o', out, *options) == 0
    assert first == out.read_bytes() == (tmp_path / 'again.json').read_bytes()


def test_lvis(convert, tmp_path):
    vocabulary = build_vocabulary('ov_lvis')
    rare, other = (vocabulary.split.index(part) for part in ('novel', 'base'))
    content = {
        'images': [
            {'id': 1, 'neg_category_ids': [3], 'not_exhaustive_category_ids': []},
            {'id': 2, 'neg_category_ids': [], 'not_exhaustive_category_ids': [9]},
        ],
        'annotations': [
            {'id': 1, 'image_id': 1, 'category_id': other + 1},
            {'id': 2, 'image_id': 2, 'category_id': rare + 1},
        ],
        'categories': [{'id': i + 1, 'name': name} for i, name in enumerate(vocabulary.names)],
    }
    source, out = tmp_path / 'lvis.json', tmp_path / 'out.json'
    source.write_text(json.dumps(content | {'categories': content['categories'][::-1]}))
    assert convert('ov_lvis', source, '-o', out) == 0
    assert json.loads(out.read_text()) == content | {'annotations': content['annotations'][:1]}


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda c: c.pop('categories'), "has no ['categories']; a COCO-style instance file is needed"),
        (lambda c: c['categories'].pop(3), "lists no categories ['motorcycle']"),
        (lambda c: c['categories'].append({'id': 999, 'name': 'cat'}), "lists categories ['cat'] more than once"),
        (lambda c: c['annotations'][0].pop('category_id'), "KeyError('category_id')"),
        (lambda c: c.update(annotations=[[]]), 'is no COCO-style instance file'),
    ],
)
def test_unusable_files_are_named_and_nothing_is_written(convert, coco, tmp_path, capsys, change, message):
    content = json.loads(coco.read_text())
    change(content)
    coco.write_text(json.dumps(content))
    assert convert('ov_coco', coco, '-o', tmp_path / 'out.json', '--keep', 'base') == 2
    error = capsys.readouterr().err
    assert error.startswith(f'error: {coco}: ') and message in error
    assert list(tmp_path.iterdir()) == [coco]


def test_further_complaints(convert, coco, tmp_path, capsys):
    before, out = coco.read_bytes(), tmp_path / 'out.json'
    (tmp_path / 'damaged.json').write_text('{"images": [')
    cases = {
        'is the source itself': [coco, '-o', coco],
        'gone.json': [tmp_path / 'gone.json', '-o', out],
        f'{tmp_path / "damaged.json"}: ': [tmp_path / 'damaged.json', '-o', out],
        "unknown vocabulary 'ov_cocoo'": [coco, '-o', out, '--vocabulary', 'ov_cocoo'],
        'has no base classes': [coco, '-o', out, '--vocabulary', 'coco_detection'],
    }
    for message, arguments in cases.items():
        assert convert('ov_coco', *arguments, '--keep', 'base') == 2
        assert message in capsys.readouterr().err
    assert coco.read_bytes() == before and not out.exists()
