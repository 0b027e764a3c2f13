"""Sampler that tells the data set which epoch an item is for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sized
from fractions import Fraction

import torch
from mmengine.dist import get_dist_info, sync_random_seed
from torch.utils.data import Sampler

from densevlm_mm.registry import DATA_SAMPLERS


@DATA_SAMPLERS.register_module()
class EpochSampler(Sampler):
    """Yields ``(epoch, index)``: an item's randomness can then be a function of seed, epoch and index.

    With that, a run does not depend on the number of workers or processes, and a resumed one continues
    exactly. Rank ``r`` of ``w`` takes the positions ``r, r + w, ...`` of the epoch's order: step by step, all
    ranks together see the batch that one process would see. The tail that does not divide is dropped, so that
    all ranks have equally many.

    Works with ``EpochBasedTrainLoop`` (whose default hooks call :meth:`set_epoch`) and ``IterBasedTrainLoop``
    (which calls it whenever the loader is exhausted).

    Args:
        dataset: The data set; its length is all that is used.
        seed: Seed of the order, the same on every rank. ``None`` draws one and shares it between the ranks.
            mmengine passes the run's seed.
        shuffle: Draw a new permutation each epoch: that of ``torch.utils.data.DistributedSampler``.
        ratio: Share of the data set drawn each epoch, in (0, 1]: the first part of the epoch's permutation,
            thus another subset every epoch. DenseVLM as released sees a quarter of its images per epoch.

    Raises:
        ValueError: ``ratio`` is out of range, or too few items are left for every rank to get one.
    """

    def __init__(self, dataset: Sized, *, seed: int | None = None, shuffle: bool = True, ratio: float = 1.0) -> None:
        if not 0 < ratio <= 1:
            raise ValueError(f'ratio must lie in (0, 1], got {ratio}')
        self.rank, self.world_size = get_dist_info()
        self.dataset = dataset
        self.seed = sync_random_seed() if seed is None else seed
        self.shuffle = shuffle
        self.epoch = self.skip = 0
        # Exact decimals: in floats, ceil(0.7 * 10) is 8.
        self.num_drawn = math.ceil(Fraction(str(ratio)) * len(dataset))
        self.num_samples = self.num_drawn // self.world_size
        if self.num_samples == 0:
            raise ValueError(
                f'{self.num_drawn} of {len(dataset)} items (ratio={ratio}) cannot be shared by '
                f'{self.world_size} processes; use fewer processes or more data'
            )

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Pairs of this rank for the present epoch, from the first one not skipped."""
        order = range(len(self.dataset))
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed + self.epoch)
            order = torch.randperm(len(self.dataset), generator=generator).tolist()
        mine = order[self.rank : self.num_samples * self.world_size : self.world_size]
        return iter([(self.epoch, index) for index in mine[self.skip :]])

    def __len__(self) -> int:
        """Items of one rank in one epoch."""
        return self.num_samples

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        """Choose what the next iteration yields.

        Args:
            epoch: Epoch, counted from 0.
            skip: Items of this rank that are left out at its beginning, because they were trained on already.
        """
        self.epoch = epoch
        self.skip = skip
