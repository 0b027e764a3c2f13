from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from densevlm_mm.vlm import Vocabulary, build_vocabulary

CATEGORIES = [{'id': 1, 'name': 'cat', 'isthing': 1}, {'name': 'sky', 'isthing': 0}, {'name': 'grass'}]
EXPECTED = Vocabulary(('cat', 'sky', 'grass'), (True, False, False))


@pytest.fixture
def write(tmp_path):
    """Writes a text file and gives its path as a config would hold it."""

    def write(text: str, name: str = 'classes.json') -> str:
        (tmp_path / name).write_text(text, encoding='utf-8')
        return str(tmp_path / name)

    return write


@st.composite
def vocabularies(draw: st.DrawFn) -> Vocabulary:
    """Any vocabulary: synonyms here and there, classes of either split, with and without a background rule."""
    names = draw(st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=6, unique=True))
    count = len(names)
    rule = draw(st.sampled_from([None, 'threshold', ('the far wall', 'the far sky')]))
    if rule is not None and 'background' not in names:
        names[draw(st.integers(0, count - 1))] = 'background'
    return Vocabulary(
        tuple(names),
        tuple(draw(st.lists(st.booleans(), min_size=count, max_size=count))),
        synonyms=tuple((name, f'another {i}')[: draw(st.integers(0, 2))] for i, name in enumerate(names)),
        split=tuple(draw(st.lists(st.sampled_from(['base', 'novel', None]), min_size=count, max_size=count))),
        background=rule,
    )


def test_numbers_of_things_and_stuff():
    assert (len(EXPECTED), EXPECTED.num_things, EXPECTED.num_stuff) == (3, 1, 2)


def test_lists_become_tuples():
    assert Vocabulary(['cat', 'sky'], [1, 0]) == Vocabulary(('cat', 'sky'), (True, False))


@given(vocabularies())
def test_things_first_is_a_stable_permutation(vocabulary):
    ordered = vocabulary.things_first()
    assert sorted(ordered.indices) == list(range(len(vocabulary)))
    assert ordered.names == tuple(vocabulary.names[i] for i in ordered.indices)
    assert list(ordered.is_thing) == [True] * vocabulary.num_things + [False] * vocabulary.num_stuff
    things, stuff = ordered.indices[: vocabulary.num_things], ordered.indices[vocabulary.num_things :]
    assert list(things) == sorted(things)
    assert list(stuff) == sorted(stuff)
    assert ordered.things_first() == ordered
    assert ordered.select(vocabulary.names) == vocabulary


@given(vocabularies(), st.data())
def test_a_selection_keeps_what_belongs_to_its_classes(vocabulary, data):
    names = data.draw(st.lists(st.sampled_from(vocabulary.names), min_size=1, unique=True))
    part = vocabulary.select(names)
    assert part.names == tuple(names)
    for i, index in enumerate(part.indices):
        for key in ('names', 'is_thing', 'synonyms', 'split'):
            assert getattr(part, key)[i] == getattr(vocabulary, key)[index]
    assert part.background == (vocabulary.background if 'background' in names else None)
    assert vocabulary.select(vocabulary.names) == vocabulary


@given(vocabularies())
def test_base_and_novel_classes_are_disjoint_and_ordered(vocabulary):
    taken = []
    for split in ('base', 'novel'):
        expected = [i for i, part in enumerate(vocabulary.split) if part == split]
        if expected:
            assert list(getattr(vocabulary, split)().indices) == expected
            taken += expected
        else:
            with pytest.raises(ValueError, match=f'the vocabulary has no {split} classes'):
                getattr(vocabulary, split)()
    assert len(taken) == len(set(taken))


@given(vocabularies())
def test_every_class_has_a_phrase(vocabulary):
    phrases, classes = vocabulary.expanded()
    assert len(phrases) == len(set(phrases)) == len(classes)
    assert sorted(set(classes)) == list(range(len(vocabulary)))
    assert list(classes) == sorted(classes)
    regrouped = {
        name: [phrase for phrase, owner in zip(phrases, classes, strict=True) if owner == i]
        for i, name in enumerate(vocabulary.names)
    }
    words = vocabulary.background if isinstance(vocabulary.background, tuple) else None
    for name, synonyms in zip(vocabulary.names, vocabulary.synonyms, strict=True):
        assert tuple(regrouped[name]) == (words if words and name == 'background' else synonyms)
    assert vocabulary.with_synonyms(regrouped).expanded() == (phrases, classes)


@given(vocabulary=vocabularies())
def test_files_hold_everything(tmp_path_factory, vocabulary):
    path = tmp_path_factory.mktemp('classes') / 'classes.json'
    vocabulary.save(path)
    assert Vocabulary.from_file(path) == vocabulary
    assert hash(Vocabulary.from_file(path)) == hash(vocabulary)
    assert [entry.name for entry in path.parent.iterdir()] == ['classes.json']


def test_files_hold_the_permission_to_repeat_names(tmp_path):
    twice = Vocabulary(('sky', 'sky'), (False, False), allow_duplicates=True)
    twice.save(tmp_path / 'deep' / 'classes.json')
    assert Vocabulary.from_file(tmp_path / 'deep' / 'classes.json') == twice


def test_a_plain_vocabulary_is_saved_as_a_list_of_categories():
    categories = [{'name': 'cat', 'isthing': 1}, {'name': 'sky', 'isthing': 0}, {'name': 'grass', 'isthing': 0}]
    assert json.loads(EXPECTED.to_json()) == categories
    assert len(EXPECTED.to_json().splitlines()) == 5


def test_a_name_need_not_be_a_phrase():
    vocabulary = EXPECTED.with_synonyms({'cat': ['kitten', 'tomcat'], 'grass': ('grass', 'lawn')})
    assert vocabulary.expanded() == (('kitten', 'tomcat', 'sky', 'grass', 'lawn'), (0, 0, 1, 2, 2))
    assert vocabulary.names == EXPECTED.names
    assert vocabulary.with_synonyms({'cat': []}).synonyms[0] == ('cat',)


def test_the_words_of_a_background_rule_stand_for_its_class():
    config = {'things': ['cat'], 'stuff': ['background'], 'background': ['wall', 'sky', 'wall']}
    vocabulary = build_vocabulary(config)
    assert vocabulary.background == ('wall', 'sky')
    assert vocabulary.expanded() == (('cat', 'wall', 'sky'), (0, 1, 1))
    by_threshold = build_vocabulary({**config, 'background': 'threshold'})
    assert by_threshold.background == 'threshold'
    assert by_threshold.expanded() == (('cat', 'background'), (0, 1))
    assert by_threshold.select(['cat']).background is None


def test_where_a_class_comes_from_does_not_tell_vocabularies_apart():
    assert EXPECTED.select(['grass']).indices == (2,)
    assert EXPECTED.select(['grass']) == Vocabulary(('grass',), (False,))
    assert EXPECTED.select(['sky', 'grass']).select(['grass']).indices == (2,)


def test_a_split_by_names():
    vocabulary = EXPECTED.with_split(base=['grass', 'cat'], novel=['sky'])
    assert vocabulary.split == ('base', 'novel', 'base')
    assert vocabulary.base() == EXPECTED.select(['cat', 'grass']).with_split(base=['cat', 'grass'])
    assert vocabulary.base().indices == (0, 2)
    assert vocabulary.with_split(novel=['cat']).split == ('novel', None, None)


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


@pytest.mark.parametrize(('options', 'message'), [
    ({'synonyms': (('cat', 'kitten'), ('kitten',))}, "'kitten' stands for two classes, 'cat' and 'sky'; remove it"),
    ({'synonyms': (('kitten',), ('cat',))}, "'cat' stands for two classes, 'cat' and 'sky'"),
    ({'synonyms': (('cat',),)}, '2 class names but 1 synonyms'),
    ({'synonyms': ('kitten', ())}, "synonyms of 'cat' must be a list of texts, got 'kitten'"),
    ({'synonyms': (('cat', ' '), ())}, r"synonyms of 'cat' must be a list of texts, got \('cat', ' '\)"),
    ({'split': ('base',)}, '2 class names but 1 splits'),
    ({'split': ('base', 'seen')}, r"is 'base', 'novel' or None, got \{'sky': 'seen'\}"),
    ({'indices': (0, 1, 2)}, '2 class names but 3 indices'),
    ({'background': 'threshold'}, "a background rule needs a class named 'background'"),
])  # fmt: skip
def test_unusable_synonyms_splits_and_rules(options, message):
    with pytest.raises(ValueError, match=message):
        Vocabulary(('cat', 'sky'), (True, False), **options)


@pytest.mark.parametrize(('rule', 'message'), [
    ('treshold', "background must be None, 'threshold' or a list of words, got 'treshold'"),
    ((), r"must be None, 'threshold' or a list of words, got \(\)"),
    (('wall', ''), "must be None, 'threshold' or a list of words"),
    (('wall', 'cat'), "'cat' stands for two classes, 'cat' and 'background'"),
])  # fmt: skip
def test_unusable_background_rules(rule, message):
    with pytest.raises(ValueError, match=message):
        Vocabulary(('cat', 'background'), (True, False), background=rule)


@pytest.mark.parametrize(('call', 'message'), [
    (lambda: EXPECTED.select(['cat', 'dog']), r"the vocabulary has no classes named \['dog'\]"),
    (lambda: EXPECTED.select('cat'), "give a list of class names, not the text 'cat'"),
    (lambda: EXPECTED.select([]), 'the vocabulary is empty'),
    (lambda: EXPECTED.with_synonyms({'dog': ['puppy']}), r"no classes named \['dog'\]"),
    (lambda: EXPECTED.with_split(base=['dog']), r"no classes named \['dog'\]"),
    (lambda: EXPECTED.with_split(base=['cat', 'sky'], novel=['cat']), r"cannot be base and novel: \['cat'\]"),
    (lambda: EXPECTED.novel(), r'the vocabulary has no novel classes; name them by novel=\[...\]'),
])  # fmt: skip
def test_unknown_names(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_duplicates_on_request():
    vocabulary = Vocabulary(('sky', 'cat', 'sky'), (False, True, False), allow_duplicates=True)
    assert vocabulary.things_first().names == ('cat', 'sky', 'sky')
    assert vocabulary.with_synonyms({'cat': ['sky']}).expanded() == (('sky', 'sky', 'sky'), (0, 1, 2))


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
    assert build_vocabulary([*'abc']).synonyms == (('a',), ('b',), ('c',))


def test_names_in_a_text_file_are_things(write):
    names = write('cat\n\nhot dog\n', 'names.txt')
    assert build_vocabulary(names) == build_vocabulary({'file': names}) == build_vocabulary(['cat', 'hot dog'])


def test_things_and_stuff_in_text_files(write):
    config = {'things': write('cat\n', 'things.txt'), 'stuff': write('1: sky\n2: grass\n', 'stuff.txt')}
    assert build_vocabulary(config) == EXPECTED


def test_a_list_of_names_in_json(write):
    assert build_vocabulary(write('["cat", "dog"]')) == build_vocabulary(['cat', 'dog'])


def test_detection_files_list_things(write):
    categories = [{'id': 1, 'name': 'cat', 'frequency': 'f'}, {'id': 2, 'name': 'bob', 'frequency': 'r'}]
    categories.append({'id': 3, 'name': 'bird', 'frequency': 'c', 'synonyms': ['bird', 'fowl']})
    vocabulary = build_vocabulary(write(json.dumps({'categories': categories})))
    assert vocabulary.is_thing == (True, True, True)
    assert vocabulary.split == ('base', 'novel', 'base')
    assert vocabulary.synonyms[2] == ('bird', 'fowl')


def test_splits_that_a_converter_wrote(write):
    categories = [{'name': 'cat', 'split': 'seen'}, {'name': 'dog', 'split': 'unseen'}]
    assert build_vocabulary(write(json.dumps(categories))).split == ('base', 'novel')


@pytest.mark.parametrize('source', [{'things': ['cat'], 'stuff': ['sky', 'grass']}, {'file': 'classes.json'}])
def test_options_of_a_config(write, source):
    listed = write(json.dumps(CATEGORIES))
    source = {**source, 'file': listed} if 'file' in source else source
    config = {**source, 'synonyms': {'sky': ['sky', 'clouds']}, 'base': ['cat'], 'novel': ['sky']}
    expected = EXPECTED.with_synonyms({'sky': ['sky', 'clouds']}).with_split(base=['cat'], novel=['sky'])
    assert build_vocabulary(config) == expected


def test_a_shipped_vocabulary_with_options():
    vocabulary = build_vocabulary({'name': 'voc21', 'background': 'threshold', 'base': ['cat']})
    assert vocabulary.background == 'threshold'
    assert vocabulary.base().names == ('cat',)
    assert vocabulary.names == build_vocabulary('voc21').names


def test_duplicates_in_a_file(write):
    file = write(json.dumps([*CATEGORIES, CATEGORIES[0]]))
    with pytest.raises(ValueError, match=r"classes.json is not a usable vocabulary: .* occur twice: \['cat'\]"):
        build_vocabulary(file)
    assert build_vocabulary({'file': file, 'allow_duplicates': True}).names == ('cat', 'sky', 'grass', 'cat')


@pytest.mark.parametrize(('config', 'message'), [
    ([], 'the vocabulary is empty'),
    ({}, 'the vocabulary is empty'),
    ({'things': []}, 'the vocabulary is empty'),
    ({'thing': ['cat']}, r"'things'/'stuff', 'file'/'allow_duplicates' or 'name', and may have .*, got \['thing'\]"),
    ({'name': 'voc21', 'stuff': ['sky']}, r"got \['name', 'stuff'\]"),
    ({'name': 'voc12'}, "unknown vocabulary 'voc12'"),
    ({'things': ['cat'], 'base': ['dog']}, r"no classes named \['dog'\]"),
    ({'things': ['cat'], 'base': 'cat'}, "give a list of class names, not the text 'cat'"),
    ({'file': 'a.json', 'things': ['cat']}, r"got \['file', 'things'\]"),
    ({'allow_duplicates': True}, r"got \['allow_duplicates'\]"),
    ({'things': 'cat'}, "things must be a list of names or a text file of them, got 'cat'"),
    ({'things': ['cat'], 'stuff': 'sky'}, "stuff must be a list of names or a text file of them, got 'sky'"),
    ('coco', r"unknown vocabulary 'coco'; known: \['ade20k', .*'voc21'\], or give a file or names"),
])  # fmt: skip
def test_unusable_configs(config, message):
    with pytest.raises(ValueError, match=message):
        build_vocabulary(config)


@pytest.mark.parametrize(
    'config', ['gone.json', 'gone.txt', 'gone.py::CLASSES', {'file': 'gone.csv'}, {'things': 'gone.txt'}]
)
def test_a_missing_file(config):
    with pytest.raises(FileNotFoundError, match='vocabulary file gone'):
        build_vocabulary(config)


@pytest.mark.parametrize(('text', 'message'), [
    ('', 'Expecting value'),
    ('[{"name": "cat"}', 'Expecting'),
    ('["cat", 3]', "every category must be a mapping with a 'name'"),
    ('{"categories": [{"name": "cat"}], "background": "threshold"}', "needs a class named 'background'"),
    ('[{"name": "cat", "split": "old"}]', "the split of a class is 'base', 'novel' or None"),
    ('[{"isthing": 1}]', "every category must be a mapping with a 'name'"),
    ('{"images": []}', 'categories'),
    ('{"categories": {"cat": 1}}', 'the categories must be a list, not dict'),
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
    ("CLASSES = [['cat']]", "every category must be a mapping with a 'name'"),
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
