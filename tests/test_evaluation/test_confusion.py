from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from densevlm_mm.evaluation import Confusion

NAMES, THINGS = ('cat', 'dog', 'sky', 'grass'), (True, True, False, False)
pairs = st.lists(st.tuples(st.integers(0, 3), st.integers(-1, 3)), max_size=40)


@given(pairs)
def test_counts_are_those_of_one_by_one(found):
    labels, top1 = np.array(found, dtype=np.int64).reshape(-1, 2).T
    confusion = Confusion.of(labels, top1, NAMES, THINGS)
    counts, regions = np.zeros((4, 4), np.int64), np.zeros(4, np.int64)
    np.add.at(counts, (labels[top1 >= 0], top1[top1 >= 0]), 1)
    np.add.at(regions, labels, 1)
    np.testing.assert_array_equal(confusion.counts, counts)
    np.testing.assert_array_equal(confusion.regions, regions)
    assert (confusion.regions - confusion.counts.sum(1)).sum() == (top1 < 0).sum()


def test_file_holds_everything(tmp_path):
    confusion = Confusion.of(np.array([0, 2, 2]), np.array([0, 1, -1]), NAMES, THINGS)
    confusion.save(tmp_path / 'new' / 'confusion.npz')
    with np.load(tmp_path / 'new' / 'confusion.npz') as file:  # no pickles
        assert file['counts'].tolist() == [[1, 0, 0, 0], [0] * 4, [0, 1, 0, 0], [0] * 4]
        assert file['regions'].tolist() == [1, 0, 2, 0]
        assert tuple(file['names']) == NAMES and tuple(file['is_thing']) == THINGS
    assert [path.name for path in (tmp_path / 'new').iterdir()] == ['confusion.npz']


def test_label_out_of_range_is_an_error():
    with pytest.raises(ValueError):
        Confusion.of(np.array([4]), np.array([0]), NAMES, THINGS)
