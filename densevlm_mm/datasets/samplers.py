"""Sampler that tells the data set which epoch an item is for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sized
from fractions import Fraction
from itertools import repeat

import torch
from mmengine.dist import get_dist_info, sync_random_seed
from torch import Tensor
from torch.utils.data import Sampler

from densevlm_mm.registry import DATA_SAMPLERS

# What a data set overrides to take pairs; as torch and mmengine define them, none does.
_ACCESS = ('__getitem__', 'prepare_data', 'get_data_info')


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
        dataset: The data set; its length is used, and with ``window`` its ``group_sizes``.
        seed: Seed of the order, the same on every rank. ``None`` draws one and shares it between the ranks.
            mmengine passes the run's seed.
        shuffle: Draw a new permutation each epoch: that of ``torch.utils.data.DistributedSampler``.
        ratio: Share of the data set drawn each epoch, in (0, 1]: the first part of the epoch's permutation,
            thus another subset every epoch. DenseVLM as released sees a quarter of its images per epoch.
        window: For data in large files, such as :class:`TarImageDataset`: shuffle the files, then the items of every
            ``window`` files among themselves, so that at any time only so many files are read, by all ranks together.
            ``None`` shuffles everything.

    Raises:
        ValueError: An argument is out of range, or too few items are left for every rank to get one.
        TypeError: With ``window``, the data set is not in such files; or it takes no pairs, as mmengine's wrappers
            and plain ``BaseDataset``.
    """

    def __init__(
        self,
        dataset: Sized,
        *,
        seed: int | None = None,
        shuffle: bool = True,
        ratio: float = 1.0,
        window: int | None = None,
    ) -> None:
        if not 0 < ratio <= 1:
            raise ValueError(f'ratio must lie in (0, 1], got {ratio}')
        if window is not None and (window < 1 or not shuffle):
            raise ValueError(f'window must be positive and needs shuffle=True, got {window} and shuffle={shuffle}')
        if window is not None and not hasattr(dataset, 'group_sizes'):
            raise TypeError(f'window needs a data set in shards, as TarImageDataset, not {type(dataset).__name__}')
        _check_takes_epochs(dataset)
        self.rank, self.world_size = get_dist_info()
        self.dataset = dataset
        self.seed = sync_random_seed() if seed is None else seed
        self.shuffle = shuffle
        self.window = window
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
        mine = self._order()[self.rank : self.num_samples * self.world_size : self.world_size]
        return zip(repeat(self.epoch), mine[self.skip :].tolist(), strict=False)

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

    def _order(self) -> Tensor:
        """Indices of the present epoch, for all ranks."""
        if not self.shuffle:
            return torch.arange(len(self.dataset))
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        if self.window is None:
            return torch.randperm(len(self.dataset), generator=generator)
        sizes = torch.as_tensor(self.dataset.group_sizes)
        return windowed_permutation(sizes, window=self.window, generator=generator)


def _check_takes_epochs(dataset: Sized) -> None:
    methods = [getattr(type(dataset), name) for name in _ACCESS if hasattr(type(dataset), name)]
    packages = {getattr(method, '__module__', '').partition('.')[0] for method in methods}
    if packages and packages <= {'torch', 'mmengine'}:
        raise TypeError(
            f'EpochSampler asks for pairs (epoch, index), which {type(dataset).__name__} cannot take: use a data set '
            'of densevlm_mm, and in place of a wrapper a single one whose ann_file lists all images'
        )


def windowed_permutation(sizes: Tensor, *, window: int, generator: torch.Generator) -> Tensor:
    """Permutation of items that lie in groups one after the other, a few groups at a time.

    Args:
        sizes: ``(G,)`` items of each group.
        window: Groups whose items are mixed.
        generator: Source of randomness.

    Returns:
        ``(sizes.sum(),)`` int64.
    """
    ends = sizes.cumsum(0)
    order = []
    for groups in torch.randperm(len(sizes), generator=generator).split(window):
        items = torch.cat([torch.arange(ends[g] - sizes[g], ends[g]) for g in groups])
        order.append(items[torch.randperm(len(items), generator=generator)])
    return torch.cat(order)
