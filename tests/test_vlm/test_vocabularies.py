"""The vocabularies that come along: against mmdet's and mmseg's METAINFO, and against the rule for training."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from densevlm_mm.vlm import Vocabulary
from densevlm_mm.vlm.prompts import fill_template
from densevlm_mm.vlm.vocabulary import shipped_vocabularies
from densevlm_mm.vlm.vocabulary_rules import flag_things, training_vocabulary

TOOL = Path(__file__).parents[2] / 'tools/misc/make_vocabularies.py'
# classes, things, first, last
SHIPPED = {
    'ade20k': (150, 100, 'wall', 'flag'),
    'ade20k_panoptic': (150, 100, 'wall', 'flag'),
    'cityscapes': (19, 8, 'road', 'bicycle'),
    'coco-stuff_ade20k': (273, 159, 'person', 'shower'),
    'coco_detection': (80, 80, 'person', 'toothbrush'),
    'coco_object': (81, 80, 'background', 'toothbrush'),
    'coco_panoptic': (133, 80, 'person', 'rug-merged'),
    'coco_stuff': (171, 80, 'person', 'wood'),
    'lvis_v1': (1203, 1203, 'aerosol_can', 'zucchini'),
    'objects365_v1': (365, 365, 'person', 'flashlight'),
    'objects365_v2': (365, 365, 'Person', 'Table Tennis '),
    'ov_coco': (80, 80, 'person', 'toothbrush'),
    'ov_coco_65': (65, 65, 'person', 'toothbrush'),
    'ov_lvis': (1203, 1203, 'aerosol_can', 'zucchini'),
    'pascal_context59': (59, 40, 'aeroplane', 'wood'),
    'pascal_context60': (60, 40, 'background', 'wood'),
    'voc20': (20, 20, 'aeroplane', 'tvmonitor'),
    'voc20b': (21, 20, 'aeroplane', 'background'),
    'voc21': (21, 20, 'background', 'tvmonitor'),
}


def flags(name: str) -> dict[str, bool]:
    vocabulary = Vocabulary.from_name(name)
    return dict(zip(vocabulary.names, vocabulary.is_thing, strict=True))


@pytest.fixture(scope='module')
def tool() -> dict:
    """The functions of the tool that made them."""
    return runpy.run_path(str(TOOL))


@pytest.fixture(scope='module')
def made(tool) -> dict[str, Vocabulary]:
    """The vocabularies as the installed mmdet and mmseg define them."""
    pytest.importorskip('mmdet')
    pytest.importorskip('mmseg')
    return tool['make_shipped']()


def test_names_of_those_that_come_along():
    assert shipped_vocabularies() == sorted(SHIPPED)


@pytest.mark.parametrize('name', SHIPPED)
def test_counts(name):
    vocabulary = Vocabulary.from_name(name)
    ends = vocabulary.names[0], vocabulary.names[-1]
    assert (len(vocabulary), vocabulary.num_things, *ends) == SHIPPED[name]


@pytest.mark.parametrize('name', SHIPPED)
def test_prompts_tell_all_classes_apart(name):
    phrases, _ = Vocabulary.from_name(name).expanded()
    prompts = [fill_template('a photo of {}.', phrase) for phrase in phrases]
    assert len(set(prompts)) == len(prompts)


@pytest.mark.parametrize('name', sorted(SHIPPED.keys() - {'ov_lvis'}))
def test_they_are_what_metainfo_defines(made, tool, name):
    assert Vocabulary.from_name(name) == made[name]
    assert (tool['SHIPPED'] / f'{name}.json').read_text(encoding='utf-8') == made[name].to_json()


def test_the_tool_makes_no_others(made):
    assert made.keys() == SHIPPED.keys() - {'ov_lvis'}


@pytest.mark.parametrize(('name', 'package', 'dataset'), [
    ('ade20k', 'mmseg', 'ADE20KDataset'),
    ('coco_detection', 'mmdet', 'CocoDataset'),
    ('coco_panoptic', 'mmdet', 'CocoPanopticDataset'),
    ('coco_stuff', 'mmseg', 'COCOStuffDataset'),
    ('ov_coco', 'mmdet', 'CocoDataset'),
    ('ov_lvis', 'mmdet', 'LVISV1Dataset'),
    ('pascal_context59', 'mmseg', 'PascalContextDataset59'),
])  # fmt: skip
def test_names_equal_those_of_the_data_set(name, package, dataset):
    datasets = pytest.importorskip(f'{package}.datasets')
    assert Vocabulary.from_name(name).names == tuple(getattr(datasets, dataset).METAINFO['classes'])


def test_panoptic_flags_are_those_of_mmdet():
    datasets = pytest.importorskip('mmdet.datasets')
    coco, ade = (getattr(datasets, f'{name}PanopticDataset').METAINFO for name in ('Coco', 'ADE20K'))
    assert [name for name, flag in flags('coco_panoptic').items() if flag] == list(coco['thing_classes'])
    things = [name.split(',')[0] for name in ade['thing_classes']]
    assert [name for name, flag in flags('ade20k_panoptic').items() if flag] == things


def test_ov_coco_shifts_no_label():
    vocabulary, coco = Vocabulary.from_name('ov_coco'), Vocabulary.from_name('coco_detection')
    base, novel = vocabulary.base(), vocabulary.novel()
    assert vocabulary.names == coco.names
    assert (len(base), len(novel), vocabulary.split.count(None)) == (48, 17, 15)
    for part in (base, novel):
        assert part.names == tuple(coco.names[i] for i in part.indices)
        assert list(part.indices) == sorted(part.indices)
    assert {'airplane', 'cat', 'scissors'} <= set(novel.names)
    assert {'person', 'toothbrush'} <= set(base.names)


def test_ov_coco_65_is_its_split_alone():
    whole, part = (Vocabulary.from_name(name) for name in ('ov_coco', 'ov_coco_65'))
    kept = [(name, split) for name, split in zip(whole.names, whole.split, strict=True) if split]
    assert list(zip(part.names, part.split, strict=True)) == kept
    assert (len(part.base()), len(part.novel())) == (48, 17)


def test_ov_lvis_calls_rare_classes_novel():
    vocabulary = Vocabulary.from_name('ov_lvis')
    assert (len(vocabulary.base()), len(vocabulary.novel())) == (866, 337)
    assert vocabulary.names == Vocabulary.from_name('lvis_v1').names
    assert {'applesauce', 'Bible', 'wolf'} <= set(vocabulary.novel().names)
    assert {'person', 'cat', 'aerosol_can'} <= set(vocabulary.base().names)


def test_ov_lvis_comes_from_lvis_s_annotations(tool, tmp_path):
    pytest.importorskip('mmdet')
    vocabulary = Vocabulary.from_name('ov_lvis')
    letters = {'base': 'c', 'novel': 'r'}
    categories = [
        {'id': i, 'name': name, 'frequency': letters[split], 'synonyms': [name, 'thing']}
        for i, (name, split) in enumerate(zip(vocabulary.names, vocabulary.split, strict=True), start=1)
    ]
    file = tmp_path / 'lvis.json'
    file.write_text(json.dumps({'categories': categories}))
    assert tool['make_ov_lvis'](str(file)) == vocabulary
    file.write_text(json.dumps({'categories': categories[1:]}))
    with pytest.raises(ValueError, match="lvis.json does not list LVIS v1's 1203 classes with their frequency"):
        tool['make_ov_lvis'](str(file))


def test_pascal_s_long_words_are_two_in_prompts():
    vocabulary = Vocabulary.from_name('voc20')
    phrases, classes = vocabulary.expanded()
    assert classes == tuple(range(20))
    changed = {name: phrase for name, phrase in zip(vocabulary.names, phrases, strict=True) if name != phrase}
    assert changed == {'diningtable': 'dining table', 'pottedplant': 'potted plant', 'tvmonitor': 'tv monitor'}


def test_context_has_the_things_of_the_definitions_that_know_its_names():
    context = flags('pascal_context59')
    for known in ('voc20', 'coco_panoptic'):
        assert all(context[name] for name, is_thing in flags(known).items() if is_thing and name in context)
    stuff = {'building', 'ceiling', 'floor', 'grass', 'ground', 'mountain', 'road', 'sky', 'snow', 'wall', 'water'}
    assert not any(context[name] for name in stuff)


# --- the rule for training --------------------------------------------------------------------------------------------


def test_the_training_vocabulary_follows_the_rule():
    coco, ade = Vocabulary.from_name('coco_stuff'), Vocabulary.from_name('ade20k_panoptic')
    shipped = Vocabulary.from_name('coco-stuff_ade20k')
    assert training_vocabulary(coco, ade) == shipped
    assert shipped.things_first() == shipped
    assert set(shipped.names) == {*coco.names, *ade.names}


def test_the_training_vocabulary_holds_the_things_of_coco_and_the_classes_of_ade20k():
    """It takes some of COCO's stuff, such as flowers, for things; ADE20K's flags it keeps."""
    training, ade = flags('coco-stuff_ade20k'), flags('ade20k_panoptic')
    assert all(training[name] for name, is_thing in flags('coco_panoptic').items() if is_thing)
    assert training['flower'] and not flags('coco_stuff')['flower']
    assert {name: training[name] for name in ade} == ade


classes = st.dictionaries(st.sampled_from('abcdefgh'), st.booleans(), min_size=1)


@given(classes, classes)
def test_the_rule(first, second):
    union = training_vocabulary(Vocabulary(tuple(first), first.values()), Vocabulary(tuple(second), second.values()))
    expected = {name: first.get(name, False) or second.get(name, False) for name in (*first, *second)}
    assert dict(zip(union.names, union.is_thing, strict=True)) == expected

    def place(name: str) -> tuple[bool, int, int]:
        """Things before stuff, the first's before the second's, else as listed."""
        flag = expected[name]
        rank, part = next((i, part) for i, part in enumerate((first, second)) if part.get(name) is flag)
        return not flag, rank, list(part).index(name)

    assert list(union.names) == sorted(expected, key=place)


def test_unknown_names_become_stuff():
    known = Vocabulary(('cat', 'sky'), (True, False)), Vocabulary(('sky', 'dog'), (True, True))
    flagged = flag_things(['dog', 'accordion', 'sky', 'dog'], known)
    assert flagged == Vocabulary(('dog', 'accordion', 'sky'), (True, False, True))


def test_the_larger_vocabulary_is_built_from_an_index(tool, tmp_path):
    index, out = tmp_path / 'classes.txt', tmp_path / 'data' / 'larger.json'
    index.write_text(
        '1: wall\n2: person, individual\n3: accordion, squeezebox\n4: windowpane, window\n5: wall, rampart\n'
    )
    assert tool['main'](['coco-stuff_ade847', str(index), str(out)]) == 0
    larger, coco = Vocabulary.from_file(out), Vocabulary.from_name('coco_stuff')
    assert larger.names == (*coco.names[:80], 'windowpane', *coco.names[80:], 'wall', 'accordion')
    assert larger.num_things == 81


def test_the_tool_reports_what_is_missing(tool, tmp_path, capsys):
    assert tool['main'](['coco-stuff_ade847', str(tmp_path / 'gone.txt'), str(tmp_path / 'larger.json')]) == 2
    assert 'gone.txt does not exist' in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
