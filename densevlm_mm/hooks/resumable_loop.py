"""Training by iterations that resumes at once and exactly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmengine.runner import IterBasedTrainLoop
from torch import nn
from torch.utils.data import DataLoader

from densevlm_mm.datasets import EpochSampler
from densevlm_mm.registry import LOOPS


@LOOPS.register_module()
class ResumableTrainLoop(IterBasedTrainLoop):
    """`IterBasedTrainLoop` that starts a resumed run at its place in the data.

    mmengine's loop reads and discards everything that was trained on already; here the sampler skips it. With
    `EpochSampler` and transforms whose randomness follows from seed, epoch and index, the batches that follow are those
    of an uninterrupted run.

    Raises:
        TypeError: On `run`, if the data loader's sampler is no `EpochSampler`.
    """

    def run(self) -> nn.Module:
        """Train, from wherever the run stands."""
        # OneDL's loop tells its iterator to skip; mmengine's own asks for the batches and discards them
        discarded = 0 if hasattr(self.dataloader_iterator, 'skip_iter') else self._iter
        self.dataloader_iterator = _EpochStream(self.dataloader, self._iter, discarded=discarded)
        return super().run()


class _EpochStream:
    """Batches of epoch after epoch, from batch `done` on.

    The base loop may first ask for `discarded` batches that it throws away; those requests are answered with nothing.
    """

    def __init__(self, dataloader: DataLoader, done: int, *, discarded: int) -> None:
        self.dataloader = dataloader
        self.sampler = dataloader.sampler
        if not isinstance(self.sampler, EpochSampler):
            raise TypeError(
                f'ResumableTrainLoop needs sampler=dict(type="densevlm_mm.EpochSampler"), not '
                f'{type(self.sampler).__name__}'
            )
        if len(dataloader) == 0:
            raise ValueError(
                f'the data set gives {len(self.sampler)} images per process and epoch, less than one batch of '
                f'{dataloader.batch_size}; use a smaller batch_size'
            )
        self.discarded = discarded
        self.epoch, self.begin = divmod(done, len(dataloader))
        self.batches: Iterator | None = None

    def __next__(self) -> Any:
        if self.discarded:
            self.discarded -= 1
            return None
        if self.batches is None:  # not earlier: hooks set the sampler's epoch, and know of none but the first
            self.batches = self._open(self.begin)
        try:
            return next(self.batches)
        except StopIteration:
            self.epoch += 1
            self.batches = self._open(0)
            return next(self.batches)

    def skip_iter(self, num_iters: int) -> None:
        """What OneDL's loop calls in place of those requests: the stream is past these batches from the start."""

    def _open(self, batches_done: int) -> Iterator:
        self.sampler.set_epoch(self.epoch, skip=batches_done * self.dataloader.batch_size)
        return iter(self.dataloader)
