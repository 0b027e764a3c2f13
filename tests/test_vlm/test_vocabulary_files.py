from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from densevlm_mm.vlm import Vocabulary, build_vocabulary

OBJECT_INFO = """\
Idx\tRatio\tTrain\tVal\tStuff\tName
1\t0.1576\t11664\t1172\t1\twall
2\t0.1072\t6046\t612\t1\tbuilding, edifice
3\t0.0160\t2524\t267\t0\tperson, individual
"""


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = 'names.txt') -> str:
        (tmp_path / name).write_text(text, encoding='utf-8')
        return str(tmp_path / name)

    return write


@pytest.mark.parametrize('text', [
    'accordion\ncup, saucer\n', '1: accordion\n2: cup, saucer', '0:accordion\n1 :  cup, saucer\n\n',
    '7\taccordion\n8\tcup, saucer\n', '\ufeffaccordion\r\ncup, saucer\r\n',
])  # fmt: skip
def test_lines_with_and_without_numbers(write, text):
    assert Vocabulary.from_index(write(text)) == Vocabulary(('accordion', 'cup, saucer'), (True, True))


@pytest.mark.parametrize(('text', 'name'), [
    (OBJECT_INFO, 'objectInfo150.txt'),
    (OBJECT_INFO, 'objectInfo150.tsv'),
    ('Name,Stuff,Idx\nwall,1,1\n"building, edifice", 1,2\n"person, individual",0 ,3\n', 'objectInfo150.csv'),
])  # fmt: skip
def test_tables(write, text, name):
    expected = Vocabulary(('wall', 'building, edifice', 'person, individual'), (False, False, True))
    assert Vocabulary.from_index(write(text, name)) == expected
    assert build_vocabulary(write(text, name)) == expected


def test_a_table_of_names_alone(write):
    assert Vocabulary.from_index(write('name\ncat\ndog\n', 'names.csv')) == build_vocabulary(['cat', 'dog'])


def test_names_are_split_on_request(write):
    vocabulary = Vocabulary.from_index(write('wall\nbuilding;edifice; house ;\n'), separator=';')
    assert vocabulary.names == ('wall', 'building')
    assert vocabulary.synonyms == (('wall',), ('building', 'edifice', 'house'))


def test_synonyms_of_two_classes(write):
    index = write('door, screen\nscreen\n')
    with pytest.raises(ValueError, match="names.txt is not a usable vocabulary: 'screen' stands for two classes"):
        Vocabulary.from_index(index, separator=',')
    assert Vocabulary.from_index(index, separator=',', allow_duplicates=True).names == ('door', 'screen')
    assert Vocabulary.from_index(index).names == ('door, screen', 'screen')


@given(
    st.lists(st.text('abcé -/()', min_size=1).map(str.strip).filter(bool), min_size=1, unique=True), st.integers(0, 9)
)
def test_numbers_change_nothing(tmp_path_factory, names, first):
    folder = tmp_path_factory.mktemp('index')
    (folder / 'bare.txt').write_text('\n'.join(names), encoding='utf-8')
    numbered = (f'{i}: {name}' for i, name in enumerate(names, start=first))
    (folder / 'numbered.txt').write_text('\n'.join(numbered), encoding='utf-8')
    assert Vocabulary.from_index(folder / 'bare.txt').names == tuple(names)
    assert Vocabulary.from_index(folder / 'numbered.txt') == Vocabulary.from_index(folder / 'bare.txt')


@pytest.mark.parametrize(('text', 'name', 'message'), [
    ('', 'names.txt', 'it is empty; give one class name a line'),
    (' \n\n', 'names.csv', 'it is empty'),
    ('1: cat\n\ndog\n', 'names.txt', 'line 3 has no number, but others have'),
    ('1: cat\n3: dog\n', 'names.txt', 'line 2 is number 3 after 1: list the classes in order, none left out'),
    ('2: cat\n1: dog\n', 'names.txt', 'line 2 is number 1 after 2'),
    ('1: cat\n2:\n', 'names.txt', r'class names at positions \[1\] are not text'),
    ('cat\ncat\n', 'names.txt', r"class names occur twice: \['cat'\]"),
    ('cat\ndog\n', 'names.csv', r"line 1 must name the columns, 'Name' among them; got \['cat'\]"),
    ('Idx,Name\n1,cat\n2\n', 'names.csv', 'line 3 has 1 cells, but there are 2 columns'),
    ('Idx,Name\n1,cat\n3,dog\n', 'names.csv', 'line 3 is number 3 after 1'),
    ('Idx,Name\none,cat\n', 'names.csv', "line 2 has 'one' instead of a number"),
    ('Name,Stuff\ncat,no\n', 'names.csv', "line 2 has 'no' in the column 'Stuff', which must be 0 or 1"),
    ('Name\n"cat\n', 'names.csv', 'unexpected end of data'),
])  # fmt: skip
def test_unusable_lists(write, text, name, message):
    with pytest.raises(ValueError, match=f'{name} is not a usable (list of classes|vocabulary): {message}'):
        Vocabulary.from_index(write(text, name))


def test_a_pickled_index_is_no_text(tmp_path):
    (tmp_path / 'index.txt').write_bytes(b'\x80\x04\x95\xff')
    with pytest.raises(ValueError, match='index.txt is not a usable list of classes'):
        Vocabulary.from_index(tmp_path / 'index.txt')
