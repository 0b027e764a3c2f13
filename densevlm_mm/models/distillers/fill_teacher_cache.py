"""Filling a teacher cache before training: every image once, in order."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sized
from itertools import repeat
from typing import Any, NamedTuple

import torch
from mmengine.dataset import pseudo_collate
from mmengine.dist import get_dist_info
from torch.utils.data import DataLoader, Sampler

from densevlm_mm.registry import DATASETS

from .densevlm import DenseVLM


class CacheSize(NamedTuple):
    """What a training set asks of a cache.

    Attributes:
        folder: Where the features go.
        images: Images of the training set.
        stored: Records that are there, of this or other sets.
        image_bytes: Bytes of each.
        free_bytes: Bytes that the disk has left.
    """

    folder: str
    images: int
    stored: int
    image_bytes: int
    free_bytes: int

    @property
    def missing_bytes(self) -> int:
        """Bytes that are still to be written, if what is stored is of this set."""
        return max(0, self.images - self.stored) * self.image_bytes


class InOrder(Sampler):
    """Every item once, as ``(0, index)`` (see `EpochSampler`): rank ``r`` of ``w`` takes ``r, r + w, ...``.

    Unlike there, ranks may have one item more than others: none waits for another.
    """

    def __init__(self, dataset: Sized) -> None:
        rank, world_size = get_dist_info()
        self.indices = range(rank, len(dataset), world_size)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Pairs of this rank."""
        return zip(repeat(0), self.indices, strict=False)

    def __len__(self) -> int:
        """Items of this rank."""
        return len(self.indices)


def images_in_order(dataloader: Mapping[str, Any]) -> DataLoader:
    """Loader of all images of a training set, once each, shared between the processes.

    Args:
        dataloader: Config ``train_dataloader``; its ``dataset``, ``batch_size`` and ``num_workers`` are used.
    """
    dataset = DATASETS.build(dataloader['dataset'])
    return DataLoader(
        dataset,
        batch_size=dataloader['batch_size'],
        num_workers=dataloader.get('num_workers', 0),
        sampler=InOrder(dataset),
        collate_fn=pseudo_collate,
    )


def cache_size(model: DenseVLM, loader: DataLoader) -> CacheSize:
    """What is there and what is to come, under the present autocast."""
    store = model.cache.store(model.teacher_text.device)
    free = shutil.disk_usage(store.folder).free
    return CacheSize(str(store.folder), len(loader.dataset), len(store), store.layout.record_bytes, free)


@torch.no_grad()
def fill_teacher_cache(
    model: DenseVLM, loader: DataLoader, progress: Callable[[int, int], None] | None = None
) -> tuple[int, int]:
    """Run the teacher on the images that are missing in its cache; what an earlier call stored stays.

    Call it under the autocast that training uses: features under another one are others.

    Args:
        model: Distiller with a teacher cache.
        loader: See `images_in_order`.
        progress: Called with the number of batches that are done and of all.

    Returns:
        The number of images of this process, and how many of them the teacher saw.

    Raises:
        ValueError, OSError: See `TeacherCache.features`.
    """
    images = made = 0
    for done, batch in enumerate(loader, start=1):
        data = model.data_preprocessor(batch, True)
        share = model.cached_regions(data['inputs'], data['data_samples'])[1]
        images += len(data['inputs'])
        made += round(len(data['inputs']) * (1 - share.item()))
        if progress is not None:
            progress(done, len(loader))
    return images, made
