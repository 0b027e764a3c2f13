"""Bad images in training: counted, reported once per kind, and never more than a stated share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.dist import all_gather_object
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import Runner

from densevlm_mm.registry import HOOKS

_KEY = 'bad_images'  # entry of the message hub, and thereby of checkpoints
_Event = tuple[str, str, str]  # what was done, because of what kind, to which image


@HOOKS.register_module()
class BadImageHook(Hook):
    """Count the images that an :class:`EpochDataset` replaced or converted, over all processes.

    The first of each kind is logged by name, and the counts at the end of training. They are part of the checkpoint: a
    resumed run goes on counting.

    Args:
        interval: Iterations after which the processes tell each other what they saw; also before each checkpoint
            and at the end of each epoch.
        max_share: Share of bad images among all that were read, above which the run ends.
        min_images: Images to read before that share is looked at.

    Raises:
        ValueError: ``max_share`` is not in 0..1.
    """

    def __init__(self, *, interval: int = 50, max_share: float = 0.01, min_images: int = 1000) -> None:
        if not 0 <= max_share <= 1:
            raise ValueError(f'max_share must be in 0..1, got {max_share}')
        self.interval = interval
        self.max_share = max_share
        self.min_images = min_images
        self.counts: dict[str, Any] = {}
        self._used, self._seen = 0, []

    def before_train(self, runner: Runner) -> None:
        """Begin to count, or go on where the resumed run stood."""
        self.counts = runner.message_hub.get_info(_KEY) or {'used': 0, 'replaced': {}, 'converted': {}}
        runner.message_hub.update_info(_KEY, self.counts)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Mapping[str, Any] | None = None
    ) -> None:
        """Count this batch, and every so often those of all processes.

        Raises:
            RuntimeError: On every process alike, if too many images are bad.
        """
        samples = data_batch['data_samples']
        self._used += len(samples)
        self._seen += _events(samples)
        if self._is_due(runner):
            self._gather(runner)

    def after_train_epoch(self, runner: Runner) -> None:
        """Count what is left, for the checkpoint of the epoch.

        Raises:
            RuntimeError: See `after_train_iter`.
        """
        self._gather(runner)

    def _is_due(self, runner: Runner) -> bool:
        # sending waits for the device; but the counts of a checkpoint must be complete
        checkpoints = [hook.interval for hook in runner.hooks if isinstance(hook, CheckpointHook) and not hook.by_epoch]
        intervals = (self.interval, *checkpoints)
        return self.is_last_train_iter(runner) or any(self.every_n_train_iters(runner, n) for n in intervals)

    def _gather(self, runner: Runner) -> None:
        parts = all_gather_object((self._used, self._seen))
        self._used, self._seen = 0, []
        for used, events in parts:
            self.counts['used'] += used
            for what, kind, path in events:
                self._count(runner, what, kind, path)
        bad = sum(count for count, _ in self.counts['replaced'].values())
        read = self.counts['used'] + bad
        if read >= self.min_images and bad > self.max_share * read:
            raise RuntimeError(
                f'more than {self.max_share:.2%} of the images are bad: {self.summary()}; fetch them again, drop them '
                'from the data set, or raise max_share of BadImageHook'
            )

    def after_train(self, runner: Runner) -> None:
        """Log the counts."""
        runner.logger.info(f'Bad images: {self.summary()}')

    def summary(self) -> str:
        """Counts by kind, with the first image of each."""
        parts = [f'{self.counts["used"]} used']
        for what in ('replaced', 'converted'):
            kinds = self.counts[what].items()
            listing = ', '.join(f'{kind} {count} (as {path})' for kind, (count, path) in kinds)
            parts.append(f'{sum(count for _, (count, _) in kinds)} {what}' + (f': {listing}' if listing else ''))
        return '; '.join(parts)

    def _count(self, runner: Runner, what: str, kind: str, path: str) -> None:
        kinds = self.counts[what]
        if kind not in kinds:
            kinds[kind] = [0, path]
            if what == 'replaced':
                runner.logger.warning(
                    f'{path} is bad ({kind}); another image takes its place. Fetch it again or drop it from the data '
                    'set. Further ones of this kind are only counted.'
                )
            else:
                runner.logger.info(f'{path} was converted ({kind}). Further ones of this kind are only counted.')
        kinds[kind][0] += 1


def _events(samples: list[Any]) -> Iterator[_Event]:
    for sample in samples:
        yield from (('replaced', kind, path) for kind, path in sample.get('replaced', ()))
        yield from (('converted', kind, sample.img_path) for kind in sample.get('converted', ()))
