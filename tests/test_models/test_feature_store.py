"""The feature store: what was finished is found, intact and by everyone; what was not is absent."""

from __future__ import annotations

import errno
import hashlib
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densevlm_mm.models.distillers import feature_store
from densevlm_mm.models.distillers.feature_store import FeatureStore

SECTIONS = (2, 3, 1)
RECORD = 2 * 6 * 4  # bytes of features
ENTRY = 16 + 4 * 3 + 4


def open_store(folder: Path, **options: int) -> FeatureStore:
    return FeatureStore(folder, sections=SECTIONS, width=4, **options)


def digest(number: int) -> bytes:
    return hashlib.blake2b(str(number).encode(), digest_size=16).digest()


def record(number: int) -> np.ndarray:
    return np.random.default_rng(number).standard_normal((6, 4)).astype(np.float16)


def add(store: FeatureStore, *numbers: int) -> None:
    store.add([digest(number) for number in numbers], np.stack([record(number) for number in numbers]))


def has(store: FeatureStore, number: int) -> bool:
    """Whether a record is there; what is there must be right."""
    parts = [store.get(digest(number), section) for section in range(3)]
    assert len({part is None for part in parts}) == 1
    if parts[0] is not None:
        np.testing.assert_array_equal(np.concatenate(parts), record(number))
    return parts[0] is not None


def test_what_is_added_is_found_by_the_writer_and_by_others(tmp_path):
    store = open_store(tmp_path / 'new')
    add(store, 1, 2)
    add(store, 3)
    other = open_store(tmp_path / 'new')
    for reader in (store, other):
        assert [has(reader, number) for number in (1, 2, 3, 4)] == [True, True, True, False]
        assert len(reader) == 3
    add(store, 4)
    assert not has(other, 4)
    other.refresh()
    assert has(other, 4) and len(other) == 4


def test_reading_writes_nothing(tmp_path):
    assert not has(open_store(tmp_path / 'new'), 1)
    assert not (tmp_path / 'new').exists()


def test_two_writers_at_once_have_files_of_their_own(tmp_path):
    one, two = open_store(tmp_path), open_store(tmp_path)
    for number in range(0, 20, 2):
        add(one, number)
        add(two, number + 1, number)
    assert len(list(tmp_path.glob('*.features'))) == 2
    for store in (one, two, open_store(tmp_path)):
        store.refresh()
        assert all(has(store, number) for number in range(20)) and len(store) == 30


def test_files_are_limited_in_size(tmp_path):
    store = open_store(tmp_path, shard_bytes=2 * RECORD)
    for number in range(5):
        add(store, number)
    assert sorted(path.stat().st_size for path in tmp_path.glob('*.features')) == [RECORD, 2 * RECORD, 2 * RECORD]
    store = open_store(tmp_path, shard_bytes=2 * RECORD)
    add(store, 5)
    store.refresh()
    assert all(has(store, number) for number in range(6)) and len(store) == 6


def test_many_records(tmp_path, monkeypatch):
    """More than are searched one by one."""
    monkeypatch.setattr(feature_store, '_MAX_UNSORTED', 7)
    store = open_store(tmp_path)
    for number in range(0, 40, 4):
        add(store, *range(number, number + 4))
    assert all(has(store, number) for number in range(40)) and not has(store, 40)
    assert all(has(open_store(tmp_path), number) for number in range(40))


@pytest.mark.parametrize('record_number', [0, 2])
def test_damaged_section_is_absent_until_it_is_added_again(tmp_path, record_number):
    add(open_store(tmp_path), 0, 1, 2)
    (path,) = tmp_path.glob('*.features')
    content = bytearray(path.read_bytes())
    content[record_number * RECORD + 2 * 4 * 2] ^= 1  # first byte of the second section
    path.write_bytes(content)
    store = open_store(tmp_path)
    with pytest.warns(UserWarning, match=f'{path.name}: has damaged records'):
        assert store.get(digest(record_number), 1) is None
    np.testing.assert_array_equal(store.get(digest(record_number), 0), record(record_number)[:2])
    assert has(store, 1)
    add(store, record_number)
    with pytest.warns(UserWarning, match='damaged'):
        assert has(store, record_number) and has(open_store(tmp_path), record_number)


def test_damaged_index_hides_its_record_only(tmp_path):
    add(open_store(tmp_path), 0, 1, 2)
    (path,) = tmp_path.glob('*.index')
    content = bytearray(path.read_bytes())
    for byte in (ENTRY + 12, 2 * ENTRY + 18):  # a digest's second half, a checksum
        content[byte] ^= 1
    path.write_bytes(content)
    store = open_store(tmp_path)
    with pytest.warns(UserWarning, match='damaged'):
        assert [has(store, number) for number in range(3)] == [True, False, False]


def test_digests_that_begin_alike_are_told_apart(tmp_path):
    store = open_store(tmp_path)
    keys = [bytes(8) + bytes([i]) * 8 for i in (0, 1, 2)]
    store.add(keys[:2], np.stack([record(0), record(1)]))
    for key, number in zip(keys[:2], (0, 1), strict=True):
        np.testing.assert_array_equal(store.get(key, 1), record(number)[2:5])
    assert store.get(keys[2], 1) is None


@pytest.mark.parametrize('suffix', ['.features', '.index'])
def test_full_disk_is_an_error_that_loses_nothing_else(tmp_path, monkeypatch, suffix):
    store = open_store(tmp_path)
    add(store, 0)
    append = feature_store._append

    def fill(path: Path, values: np.ndarray) -> None:
        if path.suffix != suffix:
            return append(path, values)
        with path.open('ab') as file:
            file.write(values.tobytes()[:5])
        raise OSError(errno.ENOSPC, 'No space left on device')

    with monkeypatch.context() as patch:
        patch.setattr(feature_store, '_append', fill)
        with pytest.raises(OSError, match=f'{tmp_path}.*No space left on device.*takes {RECORD} bytes: make room'):
            add(store, 1)
    assert has(store, 0) and not has(store, 1)
    add(store, 2)
    for reader in (store, open_store(tmp_path)):
        assert [has(reader, number) for number in range(3)] == [True, False, True]


def test_short_writes_are_continued(tmp_path, monkeypatch):
    """The operating system may take less than it is given."""

    class Reluctant:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            self.file.close()

        def write(self, data):
            return self.file.write(data[:7])

    open_path = Path.open
    with monkeypatch.context() as patch:
        patch.setattr(Path, 'open', lambda *args, **options: Reluctant(open_path(*args, **options)))
        add(open_store(tmp_path), 0, 1)
    assert has(open_store(tmp_path), 0) and has(open_store(tmp_path), 1)


def test_features_of_another_shape_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r'2 records of \(6, 4\) are expected, got \(1, 6, 4\)'):
        open_store(tmp_path).add([digest(0), digest(1)], record(0)[None])


class Files:
    """What should be readable from files that are cut."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.records: dict[str, list[int]] = {}

    def names(self) -> list[str]:
        return sorted(path.stem for path in self.folder.glob('*.features'))

    def added(self, numbers: list[int], before: dict[str, int]) -> None:
        grown = [n for n in self.names() if (self.folder / f'{n}.features').stat().st_size > before.get(n, 0)]
        assert len(grown) == 1
        self.records.setdefault(grown[0], []).extend(numbers)

    def sizes(self) -> dict[str, int]:
        return {name: (self.folder / f'{name}.features').stat().st_size for name in self.names()}

    def cut(self, which: int, suffix: str, loss: int) -> None:
        names = self.names()
        if not names:
            return
        name = names[which % len(names)]
        path, size = self.folder / f'{name}{suffix}', RECORD if suffix == '.features' else ENTRY
        left = max(0, path.stat().st_size - loss)
        with path.open('r+b') as file:
            file.truncate(left)
        self.records[name] = self.records[name][: left // size]

    def readable(self) -> set[int]:
        return {number for numbers in self.records.values() for number in numbers}


OPERATIONS = st.one_of(
    st.tuples(st.just('add'), st.integers(0, 1), st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True)),
    st.tuples(st.just('reopen')),
    st.tuples(st.just('cut'), st.integers(0, 9), st.sampled_from(['.features', '.index']), st.integers(0, 2 * RECORD)),
)


@settings(max_examples=60)
@given(st.lists(OPERATIONS, max_size=12))
def test_only_torn_records_are_lost(operations):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files, stores = Files(folder), [open_store(folder, shard_bytes=3 * RECORD) for _ in range(2)]
        for operation, *arguments in operations:
            if operation == 'add':
                who, numbers = arguments
                before = files.sizes()
                add(stores[who], *numbers)
                files.added(numbers, before)
                continue
            stores.clear()  # as after a crash: nobody holds the files that are cut
            if operation == 'cut':
                files.cut(*arguments)
            stores = [open_store(folder, shard_bytes=3 * RECORD) for _ in range(2)]
        for store in (*stores, open_store(folder)):
            store.refresh()
            assert {number for number in range(10) if has(store, number)} == files.readable()
