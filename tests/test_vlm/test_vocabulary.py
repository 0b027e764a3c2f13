from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from densevlm_mm.vlm import Vocabulary, build_vocabulary
from densevlm_mm.vlm.vocabulary import shipped_vocabularies

CATEGORIES = [{'id': 1, 'name': 'cat', 'isthing': 1}, {'name': 'sky', 'isthing': 0}, {'name': 'grass'}]
EXPECTED = Vocabulary(('cat', 'sky', 'grass'), (True, False, False))


@pytest.fixture
def write(tmp_path):
    """Writes a text file and gives its path as a config would hold it."""

    def write(text: str, name: str = 'classes.json') -> str:
        (tmp_path / name).write_text(text, encoding='utf-8')
        return str(tmp_path / name)

    return write


def classes(name: str) -> list[tuple[str, bool]]:
    vocabulary = build_vocabulary(name)
    return list(zip(vocabulary.names, vocabulary.is_thing, strict=True))


def test_numbers_of_things_and_stuff():
    assert (len(EXPECTED), EXPECTED.num_things, EXPECTED.num_stuff) == (3, 1, 2)


def test_lists_become_tuples():
    assert Vocabulary(['cat', 'sky'], [1, 0]) == Vocabulary(('cat', 'sky'), (True, False))


@given(st.lists(st.tuples(st.text('abc', min_size=1), st.booleans()), min_size=1, unique_by=lambda c: c[0]))
def test_things_first_is_stable(classes):
    vocabulary = Vocabulary(tuple(name for name, _ in classes), tuple(flag for _, flag in classes))
    ordered = vocabulary.things_first()
    things, stuff = ([name for name, flag in classes if flag is wanted] for wanted in (True, False))
    assert list(ordered.names) == things + stuff
    assert list(ordered.is_thing) == [True] * len(things) + [False] * len(stuff)
    assert ordered.things_first() == ordered


@pytest.mark.parametrize(('names', 'flags', 'message'), [
    ((), (), 'the vocabulary is empty: give at least one class name'),
    (('cat', 'dog'), (True,), '2 class names but 1 thing/stuff flags'),
    (('cat', '', 'dog', '  '), (True,) * 4, r'class names at positions \[1, 3\] are not text'),
    (('cat', 3), (True, True), r'class names at positions \[1\] are not text'),
    (('cat', 'sky', 'cat', 'sky', 'dog'), (True,) * 5, r"class names occur twice: \['cat', 'sky'\]; remove them or"),
])  # fmt: skip
def test_unusable_vocabularies(names, flags, message):
    with pytest.raises(ValueError, match=message):
        Vocabulary(names, flags)


def test_duplicates_on_request():
    vocabulary = Vocabulary(('sky', 'cat', 'sky'), (False, True, False), allow_duplicates=True)
    assert vocabulary.things_first().names == ('cat', 'sky', 'sky')


def test_every_form_of_a_config(write):
    listed = write(json.dumps(CATEGORIES))
    annotation_file = write(json.dumps({'images': [], 'categories': CATEGORIES}), 'panoptic.json')
    script = write(f'import nothing_of_that_name\nOTHER: int = 1\nCLASSES = {CATEGORIES!r}\n', 'lists.py')
    forms = (
        EXPECTED, listed, annotation_file, f'{script}::CLASSES', {'file': listed}, {'file': f'{script}::CLASSES'},
        {'things': ['cat'], 'stuff': ('sky', 'grass')},
    )  # fmt: skip
    for form in forms:
        assert build_vocabulary(form) == EXPECTED


def test_plain_names_are_things():
    assert build_vocabulary(['cat', 'sky']) == build_vocabulary({'things': ['cat', 'sky']})
    assert build_vocabulary(('cat', 'sky')).num_stuff == 0
    assert build_vocabulary({'stuff': ['sky']}).num_things == 0


def test_duplicates_in_a_file(write):
    file = write(json.dumps([*CATEGORIES, CATEGORIES[0]]))
    with pytest.raises(ValueError, match=r"classes.json is not a usable vocabulary: .* occur twice: \['cat'\]"):
        build_vocabulary(file)
    assert build_vocabulary({'file': file, 'allow_duplicates': True}).names == ('cat', 'sky', 'grass', 'cat')


@pytest.mark.parametrize(('config', 'message'), [
    ([], 'the vocabulary is empty'),
    ({}, 'the vocabulary is empty'),
    ({'things': []}, 'the vocabulary is empty'),
    ({'thing': ['cat']}, r"has the keys 'things'/'stuff' or 'file'/'allow_duplicates', got \['thing'\]"),
    ({'file': 'a.json', 'things': ['cat']}, r"got \['file', 'things'\]"),
    ({'allow_duplicates': True}, r"got \['allow_duplicates'\]"),
    ({'things': 'cat'}, "things must be a list of names, got 'cat'"),
    ({'things': ['cat'], 'stuff': 'sky'}, "stuff must be a list of names, got 'sky'"),
    ('coco', r"unknown vocabulary 'coco'; known: \['ade20k_panoptic', 'coco-stuff_ade20k', 'coco_panoptic'\], or give"),
])  # fmt: skip
def test_unusable_configs(config, message):
    with pytest.raises(ValueError, match=message):
        build_vocabulary(config)


@pytest.mark.parametrize('config', ['gone.json', 'gone.py::CLASSES', {'file': 'gone.json'}])
def test_a_missing_file(config):
    with pytest.raises(FileNotFoundError, match='vocabulary file gone'):
        build_vocabulary(config)


@pytest.mark.parametrize(('text', 'message'), [
    ('', 'Expecting value'),
    ('[{"name": "cat"}', 'Expecting'),
    ('["cat"]', "every category must be a mapping with a 'name'"),
    ('[{"isthing": 1}]', "every category must be a mapping with a 'name'"),
    ('{"images": []}', 'categories'),
    ('3', 'not iterable'),
    ('[]', 'the vocabulary is empty'),
])  # fmt: skip
def test_unusable_json(write, text, message):
    with pytest.raises(ValueError, match=f'classes.json is not a usable vocabulary: .*{message}'):
        build_vocabulary(write(text))


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / 'classes.json').write_bytes(b'\xff\xfe\xfa')
    with pytest.raises(ValueError, match='classes.json is not a usable vocabulary'):
        build_vocabulary(str(tmp_path / 'classes.json'))


@pytest.mark.parametrize(('source', 'message'), [
    ('OTHER = []', 'no list literal is assigned to CLASSES'),
    ('CLASSES = make()', 'malformed node'),
    ('CLASSES = [', 'never closed'),
    ("CLASSES = ['cat']", "every category must be a mapping with a 'name'"),
])  # fmt: skip
def test_unusable_python(write, source, message):
    with pytest.raises(ValueError, match=f'lists.py::CLASSES is not a usable vocabulary: .*{message}'):
        build_vocabulary(write(source, 'lists.py') + '::CLASSES')


def test_python_is_parsed_and_never_run(write, tmp_path):
    traces = tmp_path / 'it ran'
    run = f'open({str(traces)!r}, "w")'
    beside = write(f"{run}\nCLASSES = [{{'name': 'cat'}}]; {run}\nraise SystemExit", 'beside.py')
    assert build_vocabulary(f'{beside}::CLASSES').names == ('cat',)
    within = write(f"CLASSES = [{{'name': {run}.name}}]", 'within.py')
    with pytest.raises(ValueError, match='within.py::CLASSES is not a usable vocabulary: malformed node'):
        build_vocabulary(f'{within}::CLASSES')
    assert not traces.exists()


@pytest.mark.parametrize(('name', 'count', 'things', 'first', 'last'), [
    ('coco_panoptic', 133, 80, 'person', 'rug-merged'),
    ('ade20k_panoptic', 150, 100, 'wall', 'flag'),
    ('coco-stuff_ade20k', 273, 159, 'person', None),
])  # fmt: skip
def test_vocabularies_that_come_along(name, count, things, first, last):
    vocabulary = build_vocabulary(name)
    assert (len(vocabulary), vocabulary.num_things) == (count, things)
    assert vocabulary.names[0] == first
    assert last is None or vocabulary.names[-1] == last
    assert vocabulary == Vocabulary.from_name(name)


def test_names_of_those_that_come_along():
    assert shipped_vocabularies() == ['ade20k_panoptic', 'coco-stuff_ade20k', 'coco_panoptic']


def test_the_training_vocabulary_holds_the_things_of_coco_and_the_classes_of_ade20k():
    """It takes some of COCO's stuff, such as flowers, for things; ADE20K's flags it keeps."""
    flags = dict(classes('coco-stuff_ade20k'))
    assert all(flags[name] for name, is_thing in classes('coco_panoptic') if is_thing)
    shared = [(name, is_thing) for name, is_thing in classes('ade20k_panoptic') if name in flags]
    assert len(shared) > 100
    assert all(flags[name] is is_thing for name, is_thing in shared)
