from __future__ import annotations

import pytest

from densevlm_mm.evaluation.report import format_table, write_json


def test_table_is_aligned():
    table = format_table(['class', 'Top-1', 'regions'], [['cat', 12.5, 7], ['sky-other', None, 1234]])
    assert table.splitlines() == [
        'class      Top-1  regions',
        '-------------------------',
        'cat        12.50        7',
        'sky-other      -     1234',
    ]


def test_rows_must_have_all_cells():
    with pytest.raises(ValueError):
        format_table(['a', 'b'], [['x']])


def test_unserialisable_content_leaves_no_file(tmp_path):
    with pytest.raises(TypeError):
        write_json(tmp_path / 'file.json', {'figure': object()})
    assert not list(tmp_path.iterdir())
