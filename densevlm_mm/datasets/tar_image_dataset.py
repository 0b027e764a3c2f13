"""Images in tar files that are never unpacked: SA-1B, or what tools/dataset_converters/make_shards.py packed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
from mmengine import fileio

from densevlm_mm.registry import DATASETS

from .base import EpochDataset
from .tar_shards import ShardIndex, index_shards


@DATASETS.register_module()
class TarImageDataset(EpochDataset):
    """Images in the tar files of a folder, read in place.

    Without ``ann_file``, every ``.tar`` file below ``data_prefix['img_path']``, sorted by path; with it, those that
    this text file lists, one path per line below that folder, in its order. Every image in them is an item, in the
    order of the file; other members, such as SA-1B's annotations, are passed over. Further arguments are those of
    :class:`EpochDataset`::

        dict(type='densevlm_mm.TarImageDataset', data_root='data/sa1b', pipeline=[...])

    The items are those of a map-style data set, so that samplers, splits and resuming work as everywhere. Train with
    ``EpochSampler(window=...)``: jumping between a thousand files for every batch is slow on most disks.

    The files are indexed once, see :func:`index_shards`; they must be on a mounted disk.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        # mmengine would store each item on its own
        super().__init__(*args, serialize_data=False, **options)

    def load_data_list(self) -> TarItems:
        """Entries ``{'img_path', 'img_id', 'img_location'}``; the id is ``SHARD/MEMBER``, without suffix of the shard.

        Raises:
            FileNotFoundError: The folder is missing, or holds no image in a tar file.
            ValueError: A tar file is damaged or compressed, or the list is empty.
        """
        folder = self.folder('img_path')
        files = fileio.list_dir_or_file(folder, list_dir=False, suffix='.tar', recursive=True)
        names = self.load_lines() if self.ann_file else sorted(files)
        paths = [fileio.join_path(folder, name) for name in names]
        items = TarItems(paths, index_shards(paths))
        if not len(items):
            raise FileNotFoundError(f'{folder}: no image in a .tar file in this folder or below it')
        return items

    @property
    def group_sizes(self) -> np.ndarray:
        """Items of each tar file, one after the other: ``(files,)`` int64."""
        self.full_init()
        return self.data_list.group_sizes()

    def _get_unserialized_subset(self, indices: int | Sequence[int]) -> TarItems:
        return self.data_list.subset(indices)


class TarItems(Sequence):
    """Entries of the images in tar files, made when they are asked for: tens of millions of dicts would fill memory.

    Args:
        paths: The files.
        indexes: What is in each.
        positions: Which of all images, counted through the files, are items. ``None`` takes all.
    """

    def __init__(
        self, paths: Sequence[str], indexes: Sequence[ShardIndex], positions: Sequence[int] | None = None
    ) -> None:
        self.paths = paths
        self.indexes = indexes
        self.ends = np.cumsum([len(index.offsets) for index in indexes], dtype=np.int64)
        self.positions = range(self.ends[-1] if len(self.ends) else 0) if positions is None else positions

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, item: int) -> dict:
        position = self.positions[item]
        shard = int(np.searchsorted(self.ends, position, side='right'))
        path, index = self.paths[shard], self.indexes[shard]
        number = position - self.ends[shard] + len(index.offsets)
        name = bytes(index.names[number]).decode(errors='surrogateescape')
        return {
            'img_path': f'{path}/{name}',
            'img_id': f'{PurePath(path).stem}/{name}',
            'img_location': (path, int(index.offsets[number]), int(index.sizes[number])),
        }

    def subset(self, indices: int | Sequence[int]) -> TarItems:
        """The first (negative: the last) so many items, or those at the given places."""
        if isinstance(indices, int):
            kept = self.positions[:indices] if indices >= 0 else self.positions[indices:]
        else:
            kept = [self.positions[i] for i in indices]
        return TarItems(self.paths, self.indexes, kept)

    def group_sizes(self) -> np.ndarray:
        """Lengths of the runs of items that lie in the same file."""
        shards = np.searchsorted(self.ends, self.positions, side='right')
        bounds = np.flatnonzero(np.diff(shards, prepend=-1, append=len(self.ends)))
        return np.diff(bounds)
