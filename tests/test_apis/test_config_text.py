"""Overrides of a config, and their Python text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mmengine.config import Config

from densevlm_mm.apis.config_text import LINE_LENGTH, as_assignments, as_code, leaves, overrides

NAMES = st.sampled_from(['type', 'model', 'in_channels', 'a', 'class', '0.weight', 'with space'])
PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()


def nested(plain: st.SearchStrategy) -> st.SearchStrategy:
    """Values as configs hold them, plain ones innermost."""
    lists = st.lists(plain, max_size=4)
    return st.recursive(
        plain | lists | lists.map(tuple),
        lambda below: st.dictionaries(NAMES, below, max_size=4) | st.lists(below, max_size=3),
    )


VALUES = nested(PLAIN)
DICTS = st.dictionaries(NAMES, VALUES, max_size=4)


@given(DICTS)
def test_text_gives_the_values_back(value):
    found: dict = {}
    exec(as_assignments({'config': value}), found)
    assert found['config'] == value


@given(st.dictionaries(NAMES, nested(st.just('twenty characters !!')), max_size=4))
def test_lines_are_short_where_values_are(value):
    assert all(len(line) <= LINE_LENGTH for line in as_assignments({'config': value}).splitlines())


@pytest.mark.parametrize(('value', 'code'), [
    ({'a': 1, 'b': (2,), 'c': []}, 'dict(a=1, b=(2,), c=[])'),
    ({'lambda': 1}, "{'lambda': 1}"),
    ({'a.b': {'c': 'd'}}, "{'a.b': dict(c='d')}"),
    ({'a': 'x' * 60, 'b': ['y' * 60]}, f"dict(\n    a='{'x' * 60}',\n    b=['{'y' * 60}'],\n)"),
])  # fmt: skip
def test_code(value, code):
    assert as_code(value) == code


@st.composite
def versions(draw) -> tuple[dict, dict]:
    """A config, and another one with some values changed and some added."""
    old = draw(DICTS)
    new = {key: draw(st.just(value) | (VALUES if isinstance(value, dict) else PLAIN)) for key, value in old.items()}
    return old, {**new, 'added': draw(VALUES)}


@given(versions())
def test_inheriting_and_naming_the_overrides_gives_the_new_config(pair):
    old, new = pair
    merged = Config._merge_a_into_b(overrides(old, new), old)
    # a dict that takes the place of another keeps what it does not mention
    for key, value in new.items():
        if not (isinstance(value, dict) and isinstance(old.get(key), dict)):
            assert merged[key] == value


def test_only_what_differs_is_named():
    old = {'neck': {'type': 'FPN', 'in_channels': [1, 2]}, 'head': {'type': 'A'}}
    new = {'neck': {'type': 'FPN', 'in_channels': [3, 3]}, 'head': {'type': 'A'}, 'weights': None}
    assert overrides(old, new) == {'neck': {'in_channels': [3, 3]}, 'weights': None}
    assert overrides(old, old) == {}


def test_a_dict_that_replaces_another_is_named_whole():
    old, new = {'backbone': {'type': 'ResNet', 'depth': 50}}, {'backbone': {'_delete_': True, 'type': 'ResNet'}}
    named = overrides(old, new)
    assert named == new
    assert list(leaves(named, old)) == [('backbone', old['backbone'], new['backbone'])]


def test_leaves_look_into_lists_of_parts():
    old = {'model': {'neck': [{'type': 'FPN', 'in_channels': [1, 2]}, {'type': 'BFP', 'in_channels': 8}]}}
    new = {'model': {'neck': [{'type': 'FPN', 'in_channels': [3, 3]}, {'type': 'BFP', 'in_channels': 8}]}}
    named = overrides(old, new)
    assert named == new
    assert list(leaves(named, old)) == [('model.neck.0.in_channels', [1, 2], [3, 3])]
