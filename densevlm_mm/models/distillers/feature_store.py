"""Half-precision features on disk: written once, read at random, by any number of processes at a time."""

from __future__ import annotations

import time
import uuid
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np

_FEATURES, _INDEX = '.features', '.index'
_PLACE_BITS = 32  # of the number of a record in its file, below the number of the file
_MAX_UNSORTED = 16384


@dataclass(frozen=True)
class Layout:
    """What every record of a store looks like.

    Attributes:
        sections: Rows of each part that is read by itself.
        width: Values of a row.
    """

    sections: tuple[int, ...]
    width: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and values of a row of a whole record."""
        return sum(self.sections), self.width

    @property
    def record_bytes(self) -> int:
        """Bytes of the features of a record."""
        return 2 * sum(self.sections) * self.width

    @property
    def entry(self) -> np.dtype:
        """A record in the index: its digest, a checksum of each section, and one of the entry itself."""
        return np.dtype([('digest', '<u8', 2), ('sums', '<u4', len(self.sections)), ('sum', '<u4')])

    def rows(self, section: int) -> slice:
        """Rows of a section."""
        start = sum(self.sections[:section])
        return slice(start, start + self.sections[section])


class FeatureStore:
    """Records of features ``(R, C)`` fp16 by digest, in the files of a folder.

    Whoever writes, writes files of its own and only ever appends: first the features to one file, then their entries
    to the index beside it. What an interruption cut off has no entry, and nothing is appended behind it. A section
    whose checksum is wrong counts as absent. So no process waits for another, and whatever was finished is found.

    In memory are 16 bytes per record, in sorted arrays; the files are mapped.

    Args:
        folder: Where the files are; made by the first write.
        sections: Rows R of a record, as the sizes of the parts that are read by themselves.
        width: Values C of a row.
        shard_bytes: Size from which on a writer begins another file.
    """

    def __init__(
        self, folder: str | Path, *, sections: Sequence[int], width: int, shard_bytes: int = 4 * 2**30
    ) -> None:
        self.folder = Path(folder)
        self.layout = Layout(tuple(sections), width)
        self.shard_records = max(1, shard_bytes // self.layout.record_bytes)
        self._shards: dict[str, _Shard] = {}
        self._places = _Places()
        self._own: _Shard | None = None
        self.refresh()

    def __len__(self) -> int:
        """Records that are known; of the same digest there may be several."""
        return sum(shard.count for shard in self._shards.values())

    def refresh(self) -> None:
        """Take note of the records that others have finished since the last time."""
        shards = [self._shard(path.stem) for path in sorted(self.folder.glob(f'*{_INDEX}'))]
        self._places.add([shard.grow() for shard in shards if shard.count < self.shard_records])

    def get(self, digest: bytes, section: int) -> np.ndarray | None:
        """A section ``(n, C)`` fp16 of the record of a digest; None where there is none that is intact.

        Args:
            digest: 16 bytes.
            section: Index of the section.
        """
        wanted = np.frombuffer(digest, '<u8')
        shards = list(self._shards.values())
        for place in self._places.find(wanted[0]):
            number, record = divmod(place, 1 << _PLACE_BITS)
            rows = shards[number].read(record, wanted, section)
            if rows is not None:
                return rows
        return None

    def add(self, digests: Sequence[bytes], features: np.ndarray) -> None:
        """Store records.

        Args:
            digests: 16 bytes per record.
            features: ``(len(digests), R, C)`` fp16.

        Raises:
            OSError: They cannot be written; then none of them is stored.
        """
        features = np.ascontiguousarray(features, np.float16)
        entries = self._entries(digests, features)
        # put back when all is written: an attempt that fails leaves a torn tail, which ends the file
        shard, self._own = self._own, None
        if shard is None or shard.count >= self.shard_records:
            shard = self._shard(_unique_name())
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._places.add([shard.append(entries, features)])
        except OSError as error:
            raise OSError(
                error.errno,
                f'{self.folder}: features cannot be stored ({error.strerror}). Each image takes '
                f'{self.layout.record_bytes:,} bytes: make room or choose another folder, then start or resume the run '
                'again. What is stored is not lost',
            ) from error
        self._own = shard

    def _shard(self, name: str) -> _Shard:
        if name not in self._shards:
            self._shards[name] = _Shard(self.folder, name, self.layout, len(self._shards))
        return self._shards[name]

    def _entries(self, digests: Sequence[bytes], features: np.ndarray) -> np.ndarray:
        if features.shape != (len(digests), *self.layout.shape):
            raise ValueError(f'{len(digests)} records of {self.layout.shape} are expected, got {features.shape}')
        sections = [self.layout.rows(section) for section in range(len(self.layout.sections))]
        entries = np.zeros(len(digests), self.layout.entry)
        entries['digest'] = np.frombuffer(b''.join(digests), '<u8').reshape(-1, 2)
        entries['sums'] = [[crc32(record[rows]) for rows in sections] for record in features]
        entries['sum'] = [_sum_of(entry) for entry in entries]
        return entries


class _Shard:
    """A file of features, and the index beside it."""

    def __init__(self, folder: Path, name: str, layout: Layout, number: int) -> None:
        self.features_path, self.index_path = folder / (name + _FEATURES), folder / (name + _INDEX)
        self.layout = layout
        self.first_place = number << _PLACE_BITS
        self.count = 0
        self._entries, self._features = np.empty(0, layout.entry), np.empty((0, *layout.shape), np.float16)

    def grow(self) -> tuple[np.ndarray, np.ndarray]:
        """Count the finished records again; keys and places of the new ones."""
        size = self.layout.entry.itemsize
        count = min(_size(self.index_path) // size, _size(self.features_path) // self.layout.record_bytes)
        if count <= self.count:
            return self._found(np.empty(0, self.layout.entry))
        return self._found(
            np.fromfile(self.index_path, self.layout.entry, count - self.count, offset=self.count * size)
        )

    def append(self, entries: np.ndarray, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Write records; their keys and places."""
        _append(self.features_path, features)
        _append(self.index_path, entries)
        return self._found(entries)

    def read(self, record: int, digest: np.ndarray, section: int) -> np.ndarray | None:
        """Rows of a section; None where they or their entry are damaged, or the record is that of another digest."""
        if record >= len(self._entries):
            self._entries = np.memmap(self.index_path, self.layout.entry, 'r', shape=(self.count,))
            self._features = np.memmap(self.features_path, np.float16, 'r', shape=(self.count, *self.layout.shape))
        entry = self._entries[record]
        if entry['sum'] == _sum_of(entry):
            if (entry['digest'] != digest).any():
                return None
            rows = np.array(self._features[record, self.layout.rows(section)])
            if crc32(rows) == entry['sums'][section]:
                return rows
        warnings.warn(f'{self.features_path}: has damaged records, which are made anew', stacklevel=3)
        return None

    def _found(self, entries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        first = self.first_place + self.count
        self.count += len(entries)
        return entries['digest'][:, 0], np.arange(first, first + len(entries))


class _Places:
    """Where the records of a key are: a large sorted part and a small one that is not."""

    def __init__(self) -> None:
        self._keys, self._places = np.empty(0, np.uint64), np.empty(0, np.int64)
        self._new_keys, self._new_places = self._keys, self._places

    def add(self, found: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        """Add several keys and their places."""
        self._new_keys = np.concatenate([self._new_keys, *(keys for keys, _ in found)])
        self._new_places = np.concatenate([self._new_places, *(places for _, places in found)])
        if len(self._new_keys) > _MAX_UNSORTED:
            self._sort()

    def find(self, key: np.uint64) -> list[int]:
        """Places of a key, in the order in which they were added."""
        first, end = self._keys.searchsorted(key, 'left'), self._keys.searchsorted(key, 'right')
        return [*self._places[first:end].tolist(), *self._new_places[self._new_keys == key].tolist()]

    def _sort(self) -> None:
        keys = np.concatenate([self._keys, self._new_keys])
        order = keys.argsort(kind='stable')
        self._keys, self._places = keys[order], np.concatenate([self._places, self._new_places])[order]
        self._new_keys, self._new_places = self._new_keys[:0], self._new_places[:0]


def _unique_name() -> str:
    # by time: of two records of a digest, every later run takes the older
    return f'{time.time_ns():020}-{uuid.uuid4().hex[:12]}'


def _sum_of(entry: np.void) -> int:
    return crc32(entry.tobytes()[: -entry['sum'].itemsize])


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _append(path: Path, values: np.ndarray) -> None:
    # unbuffered and closed each time: what does not fit on the disk is an error here and not at some later point
    with path.open('ab', buffering=0) as file:
        left = memoryview(values.reshape(-1).view(np.uint8))
        while left:
            left = left[file.write(left) :]
