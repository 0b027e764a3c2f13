"""Counts on disk: whatever a kill cuts off, the rest is read, and what follows is not part of it."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given
from hypothesis import strategies as st

from densevlm_mm.seg.image_counts import ImageCounts

ENTRIES = {f'a/{number}.jpg': {'labels': [number], 'truth': [10**number]} for number in range(4)}


@given(cut=st.integers(0, 400))
def test_a_file_cut_anywhere_goes_on(cut):
    with TemporaryDirectory() as folder:
        counts = ImageCounts(Path(folder), 'voc20', {'window': 336})
        counts.add(ENTRIES)
        path = counts.folder / 'images0.jsonl'
        path.write_bytes(path.read_bytes()[:cut])
        kept = counts.read()
        assert kept == {name: ENTRIES[name] for name in list(ENTRIES)[: len(kept)]}
        for name in ENTRIES.keys() - kept.keys():
            ImageCounts(Path(folder), 'voc20', {'window': 336}).add({name: ENTRIES[name]})
        assert counts.read() == ENTRIES


def test_processes_and_settings(tmp_path):
    first, second = (ImageCounts(tmp_path, 'voc20', {'window': 336}, rank=rank) for rank in range(2))
    first.add({'a': 1})
    second.add({'b': 2})
    assert first.read() == second.read() == {'a': 1, 'b': 2}
    other = ImageCounts(tmp_path, 'voc20', {'window': 224})
    assert other.read() == {}
    assert json.loads((other.folder / 'settings.json').read_text()) == {'window': 224}
