from __future__ import annotations

from collections.abc import Sized

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from mmengine.dataset import BaseDataset, ClassBalancedDataset, ConcatDataset, RepeatDataset
from mmengine.runner.loops import _InfiniteDataloaderIterator
from torch.utils.data import DataLoader, DistributedSampler, Subset

from densevlm_mm.datasets import EpochSampler, ImageDataset
from densevlm_mm.registry import DATA_SAMPLERS


class Shards:
    """A data set in groups."""

    def __init__(self, sizes: list[int]) -> None:
        self.group_sizes = np.array(sizes)

    def __len__(self) -> int:
        return int(self.group_sizes.sum())


def make(data: int | Sized, *, rank: int = 0, world: int = 1, **options) -> EpochSampler:
    """Sampler of one of several ranks, without the ranks; for a data set of that many items."""
    dataset = range(data) if isinstance(data, int) else data
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('densevlm_mm.datasets.samplers.get_dist_info', lambda: (rank, world))
        return DATA_SAMPLERS.build({'type': 'densevlm_mm.EpochSampler', 'dataset': dataset, 'seed': 0, **options})


def epoch_of(sampler: EpochSampler, epoch: int) -> list[tuple[int, int]]:
    sampler.set_epoch(epoch)
    return list(sampler)


def test_every_item_once_per_epoch_in_new_order():
    sampler = make(50)
    first, second = epoch_of(sampler, 0), epoch_of(sampler, 1)
    assert {epoch for epoch, _ in first} == {0} and {epoch for epoch, _ in second} == {1}
    assert sorted(index for _, index in first) == sorted(index for _, index in second) == list(range(50))
    assert [index for _, index in first] != [index for _, index in second]
    assert epoch_of(make(50), 1) == second
    assert epoch_of(make(50, seed=1), 0) != first


def test_items_that_are_done_can_be_skipped():
    sampler = make(20, rank=1, world=2)
    whole = epoch_of(sampler, 2)
    sampler.set_epoch(2, skip=7)
    assert list(sampler) == whole[7:]
    assert epoch_of(sampler, 2) == whole


def test_order_is_that_of_torchs_distributed_sampler():
    theirs = DistributedSampler(range(30), num_replicas=1, rank=0, seed=3)
    theirs.set_epoch(5)
    assert [index for _, index in epoch_of(make(30, seed=3), 5)] == list(theirs)


def test_without_shuffling_the_order_is_that_of_the_data():
    assert list(make(5, shuffle=False)) == [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4)]


@given(st.integers(1, 200), st.integers(1, 8), st.integers(1, 4), st.integers(0, 3))
def test_ranks_together_see_the_batches_of_one_process(length, world, batch_size, epoch):
    assume(length >= world)
    alone = epoch_of(make(length), epoch)
    ranks = [epoch_of(make(length, rank=rank, world=world), epoch) for rank in range(world)]
    assert [len(items) for items in ranks] == [length // world] * world
    for step in range(0, length // world, batch_size):
        together = [item for items in ranks for item in items[step : step + batch_size]]
        assert sorted(together) == sorted(alone[step * world :][: len(together)])


@pytest.mark.parametrize('length, ratio, drawn', [(10, 0.7, 7), (10, 0.3, 3), (9, 1 / 3, 3), (118287, 0.25, 29572)])
def test_ratio_draws_that_share(length, ratio, drawn):
    sampler = make(length, ratio=ratio)
    assert len(sampler) == drawn == len(set(sampler))


def test_ratio_draws_another_subset_each_epoch():
    sampler = make(100, ratio=0.25)
    first, second = ({index for _, index in epoch_of(sampler, epoch)} for epoch in (0, 1))
    assert first != second
    assert epoch_of(make(100), 0)[:25] == epoch_of(sampler, 0)


@pytest.mark.parametrize('ratio', [0, -0.5, 1.5])
def test_ratio_out_of_range_is_an_error(ratio):
    with pytest.raises(ValueError, match='ratio'):
        make(10, ratio=ratio)


def test_too_little_data_for_the_processes_is_an_error():
    with pytest.raises(ValueError, match='2 of 3 items .* cannot be shared by 4 processes'):
        make(3, ratio=0.5, world=4)


def test_typo_is_an_error():
    with pytest.raises(TypeError, match='shufle'):
        make(10, shufle=False)


PLAIN = {'data_root': '.', 'lazy_init': True, 'metainfo': {}}


@pytest.mark.parametrize('wrap', [
    lambda: ConcatDataset([ImageDataset(**PLAIN)], lazy_init=True),
    lambda: RepeatDataset(ImageDataset(**PLAIN), 2, lazy_init=True),
    lambda: ClassBalancedDataset(ImageDataset(**PLAIN), 0.5, lazy_init=True),
    lambda: Subset(ImageDataset(**PLAIN), [0]),
    lambda: BaseDataset(**PLAIN),
])  # fmt: skip
def test_data_sets_that_know_no_epochs_are_refused(wrap):
    dataset = wrap()
    name = type(dataset).__name__
    with pytest.raises(TypeError, match=rf'pairs \(epoch, index\), which {name} cannot take: use a data set of'):
        make(dataset)


def test_a_wrapper_that_passes_pairs_on_is_taken():
    class Both(torch.utils.data.ConcatDataset):
        def __getitem__(self, item: tuple[int, int]) -> tuple[int, int]:
            return item[0], super().__getitem__(item[1])

    dataset = Both([range(3), range(3, 5)])
    assert [dataset[item] for item in make(dataset, shuffle=False)] == [(0, index) for index in range(5)]


group_sizes = st.lists(st.integers(0, 9), min_size=1, max_size=12)
windows = st.one_of(st.none(), st.integers(1, 13))


@given(group_sizes, windows, st.integers(1, 5), st.floats(0.05, 1), st.integers(0, 3), st.data())
def test_no_item_is_lost_or_seen_twice(sizes, window, world, ratio, epoch, data):
    """Of what an epoch draws, every rank sees its share and together they see all but a tail of less than a share."""
    shards, options = Shards(sizes), {'ratio': ratio, 'window': window}
    assume(len(shards) * ratio >= world)
    alone = epoch_of(make(shards, **options), epoch)
    ranks = [epoch_of(make(shards, rank=rank, world=world, **options), epoch) for rank in range(world)]
    together = [item for step in zip(*ranks, strict=True) for item in step]
    assert together == alone[: len(alone) // world * world]
    assert len(set(alone)) == len(alone) == make(shards, **options).num_drawn
    assert set(alone) <= {(epoch, index) for index in range(len(shards))}
    skip = data.draw(st.integers(0, len(ranks[-1])))
    resumed = make(shards, rank=world - 1, world=world, **options)
    resumed.set_epoch(epoch, skip=skip)
    assert list(resumed) == ranks[-1][skip:]


@given(group_sizes, st.integers(1, 13), st.integers(0, 3))
def test_window_reads_a_few_shards_at_a_time(sizes, window, epoch):
    shards = Shards(sizes)
    assume(len(shards))
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    order = [shard_of[index] for _, index in epoch_of(make(shards, window=window), epoch)]
    # at any time, so many shards are begun but not finished
    spans = [(order.index(shard), len(order) - 1 - order[::-1].index(shard)) for shard in set(order)]
    for step in range(len(order)):
        assert sum(first <= step <= last for first, last in spans) <= window


def test_window_shuffles_shards_and_what_is_in_them():
    shards = Shards([50] * 8)
    first, second = (epoch_of(make(shards, window=2), epoch) for epoch in (0, 1))
    parts = [{index // 50 for _, index in first[start : start + 100]} for start in range(0, 400, 100)]
    assert [len(part) for part in parts] == [2, 2, 2, 2]
    assert [index for _, index in first] != [index for _, index in second]
    assert first[:100] != sorted(first[:100])
    assert first == epoch_of(make(shards, window=2), 0)
    assert epoch_of(make(shards, window=2, seed=1), 0) != first


def test_window_needs_shards_and_shuffling():
    with pytest.raises(TypeError, match='window needs a data set in shards, as TarImageDataset, not range'):
        make(10, window=2)
    with pytest.raises(ValueError, match='window must be positive'):
        make(Shards([5, 5]), window=0)
    with pytest.raises(ValueError, match='needs shuffle=True'):
        make(Shards([5, 5]), window=2, shuffle=False)


def test_infinite_iteration_of_mmengine_moves_through_the_epochs(monkeypatch):
    monkeypatch.setattr('time.sleep', lambda seconds: None)

    class Echo(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 12

        def __getitem__(self, item):
            return item

    loader = DataLoader(Echo(), batch_size=3, sampler=make(12), collate_fn=list)
    iterator = _InfiniteDataloaderIterator(loader)
    stream = [item for _ in range(12) for item in next(iterator)]
    assert stream == [item for epoch in range(3) for item in epoch_of(make(12), epoch)]
