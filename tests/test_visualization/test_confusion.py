from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from densevlm_mm.visualization import confusion as module
from densevlm_mm.visualization import plot_confusion

NAMES = ('cat', 'dog, hound', 'bus', 'sky', 'grass', 'a-stuff-with-an-endless-name')
IS_THING = (True, True, True, False, False, False)
# half of the sky is taken for buses, a tenth for cats; one dog of four for grass; nothing else for the other kind
COUNTS = np.array(
    [[6, 1, 0, 0, 0, 0], [0, 3, 0, 0, 1, 0], [0, 0, 5, 0, 0, 0], [1, 0, 5, 3, 0, 0], [0, 0, 0, 2, 8, 0], [0] * 6]
)
REGIONS = np.array([7, 4, 5, 10, 10, 0])


@pytest.fixture
def drawn(monkeypatch) -> list:
    """The panels that are drawn."""
    panels = []
    original = module._draw

    def record(axis, panel, *arguments) -> None:
        panels.append((axis, panel))
        original(axis, panel, *arguments)

    monkeypatch.setattr(module, '_draw', record)
    return panels


def test_panels_show_the_confusions_between_the_kinds(drawn, tmp_path):
    plot_confusion(tmp_path / 'picture.png', COUNTS, REGIONS, NAMES, IS_THING)
    (axis, stuff), (_, things) = drawn
    assert [NAMES[i] for i in stuff.rows] == ['sky'] and [NAMES[i] for i in stuff.columns] == ['bus', 'cat']
    np.testing.assert_allclose(stuff.shares, [[60, 50, 10]])
    assert [NAMES[i] for i in things.rows] == ['dog, hound'] and [NAMES[i] for i in things.columns] == ['grass']
    np.testing.assert_allclose(things.shares, [[25, 25]])
    assert '6 of 20 regions' in stuff.title and '1 of 3 stuff classes' in stuff.title.replace('\n', ' ')
    assert [label.get_text() for label in axis.get_yticklabels()] == ['sky (10)']
    assert [label.get_text() for label in axis.get_xticklabels()] == ['all things', 'bus', 'cat']
    assert [text.get_text() for text in axis.texts] == ['60', '50', '10']


def test_only_the_largest_are_shown(drawn, tmp_path):
    generator = np.random.default_rng(0)
    counts = generator.integers(0, 30, (150, 150))
    is_thing = np.arange(150) % 3 > 0
    plot_confusion(
        tmp_path / 'picture.png', counts, counts.sum(1), list(map(str, range(150))), is_thing, max_rows=5, max_columns=4
    )
    taken = {row: counts[row, is_thing].sum() for row in np.flatnonzero(~is_thing)}
    panel = drawn[0][1]
    assert panel.shares.shape == (5, 5)
    assert sorted(taken[row] for row in panel.rows) == sorted(taken.values())[-5:]
    columns = counts[panel.rows][:, is_thing].sum(0)
    assert sorted(counts[panel.rows][:, panel.columns].sum(0)) == sorted(columns)[-4:]
    assert Image.open(tmp_path / 'picture.png').width < 1500


def test_nothing_confused_leaves_an_empty_panel(tmp_path):
    path = tmp_path / 'new' / 'picture.png'
    plot_confusion(path, np.diag(REGIONS), REGIONS, NAMES, IS_THING)
    plot_confusion(path, np.zeros((2, 2), int), np.zeros(2, int), NAMES[:2], IS_THING[:2])
    assert [file.name for file in path.parent.iterdir()] == ['picture.png']
    assert Image.open(path).format == 'PNG'


def test_names_are_shortened():
    assert module._short('dog, hound') == 'dog'
    assert module._short(NAMES[5], 10) == 'a-stuff-w…'
