from __future__ import annotations

import doctest

import open_clip
import pytest
from hypothesis import given
from hypothesis import strategies as st

from densevlm_mm.vlm import TEMPLATES, prompts
from densevlm_mm.vlm.prompts import VILD, fill_template, get_templates


def test_the_ensemble_has_63_distinct_templates():
    assert len(VILD) == len(set(VILD)) == 63
    assert all(template.count('{}') == 1 for template in VILD)
    assert sum('{article}' in template for template in VILD) == 15


def test_every_template_is_a_sentence_once_filled():
    filled = [fill_template(template, 'Traffic_light') for template in VILD]
    assert len(set(filled)) == 63
    for prompt in filled:
        assert 'traffic light' in prompt
        assert '{' not in prompt and '*' not in prompt
        assert prompt.startswith(('This is ', 'There is ', 'itap of '))


@pytest.mark.parametrize('template', [
    'There is {article} {} in the scene.', 'This is a photo of one {} in the scene.', 'itap of my {}.',
    'This is a photo of many {}.', 'This is a photo of a hard to see {}.', 'This is a bad photo of {article} {}.',
    'This is a photo of the cool {}.', 'This is a plushie {}.', 'This is the embroidered {}.',
    'This is an embroidered {}.', 'This is a black and white photo of the {}.', 'This is a painting of the {}.',
])  # fmt: skip
def test_some_of_its_templates(template):
    assert template in VILD


@pytest.mark.parametrize(('name', 'prompt'), [
    ('cat', 'a photo of a cat.'),
    ('apple', 'a photo of an apple.'),
    ('unicycle', 'a photo of an unicycle.'),
    ('hourglass', 'a photo of a hourglass.'),
    ('Apple', 'a photo of a apple.'),
    ('wall-other_merged', 'a photo of a wall-other merged.'),
    ('door/gate', 'a photo of a door or gate.'),
    ('TV set.', 'a photo of a tv set.'),
    ('bed ', 'a photo of a bed.'),
    ('{} of {article}', 'a photo of a {} of {article}.'),
    ('cup, cups', 'a photo of a cup, cups.'),
])  # fmt: skip
def test_names_are_cleaned_and_get_the_article_of_their_first_letter_as_written(name, prompt):
    assert fill_template('a photo of {article} {}.', name) == prompt


def test_only_the_placeholders_of_a_template_change():
    assert fill_template('{article} {}, {ARTICLE} and the {}', 'Owl') == 'a owl, {ARTICLE} and the owl'


def test_the_example_in_its_docstring():
    assert doctest.testmod(prompts).failed == 0
    assert doctest.testmod(prompts).attempted > 0


def test_templates_by_name_or_as_given():
    assert get_templates('vild') is VILD
    assert TEMPLATES.keys() == {'vild', 'openai', 'openai_simple', 'photo', 'none'}
    assert get_templates('photo') == ('a photo of {article} {}.',)
    assert get_templates(['{}', 'the {}']) == ('{}', 'the {}')


def test_openai_s_templates_are_those_of_open_clip():
    for name, published, count in (
        ('openai', open_clip.OPENAI_IMAGENET_TEMPLATES, 80),
        ('openai_simple', open_clip.SIMPLE_IMAGENET_TEMPLATES, 7),
    ):
        templates = get_templates(name)
        assert len(templates) == len(set(templates)) == count
        assert [fill_template(t, 'hot dog') for t in templates] == [fill('hot dog') for fill in published]


@pytest.mark.parametrize('name', sorted(TEMPLATES))
def test_named_templates_would_be_accepted_as_a_list(name):
    assert get_templates(list(TEMPLATES[name])) == TEMPLATES[name]


def test_the_bare_name():
    assert [fill_template(t, 'Traffic_light') for t in get_templates('none')] == ['traffic light']


def test_templates_from_a_file(tmp_path):
    (tmp_path / 'mine.txt').write_text('a {}\n\n  the {}, {article} thing \n', encoding='utf-8')
    assert get_templates(str(tmp_path / 'mine.txt')) == ('a {}', 'the {}, {article} thing')
    with pytest.raises(FileNotFoundError, match='file of prompt templates .*gone.txt does not exist'):
        get_templates(str(tmp_path / 'gone.txt'))
    (tmp_path / 'empty.txt').write_text('\n')
    with pytest.raises(ValueError, match=r'prompt templates in .*empty.txt must hold \{\}'):
        get_templates(str(tmp_path / 'empty.txt'))


@given(st.text(), st.sampled_from(VILD))
def test_any_name_fills_any_template(name, template):
    prompt = fill_template(template, name)
    before, after = template.split('{}')
    assert prompt.endswith(after)
    assert prompt.startswith(before.split('{article}')[0])
    assert name.replace('_', ' ').replace('/', ' or ').lower().strip().rstrip('.') in prompt


@pytest.mark.parametrize(('templates', 'message'), [
    ('vidl', r"unknown prompt templates 'vidl'; known: \['none', 'openai', .*'vild'\], or give a list or a .txt file"),
    ([], r'must hold \{\} for the class name, got \[\]'),
    (['a {}', 'a photo'], r"must hold \{\} for the class name, got \['a photo'\]"),
    (['a {}', 3], r'must hold \{\} for the class name, got \[3\]'),
    (['a {}', 'a {name} {}'], r"may hold \{\} and \{article\}, but no other braces, got \['a \{name\} \{\}'\]"),
])  # fmt: skip
def test_unusable_templates(templates, message):
    with pytest.raises(ValueError, match=message):
        get_templates(templates)
