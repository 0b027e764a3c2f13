"""What a training step costs: time by stage, memory, arithmetic, and how that grows with the vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mmengine.logging import MMLogger

from densevlm_mm.apis import keep_freed_memory
from densevlm_mm.vlm.factory import resolve_dtype

from .flops import step_flops
from .machine import forget_peak_memory, is_gpu, matmul_rate, memory_in_use, peak_memory
from .options import PROJECT, Progress, StepOptions
from .own_process import Resident, in_own_process
from .photos import PhotoFolder
from .profiling import profile_to
from .synthetic import arch_named
from .timing import TOTAL, Timing, summarize, take_turns
from .training import ProjectStep, ReferenceLikeStep, TrainingStep, trainable_blocks

# Images that are made; a step that loads takes others each time.
_PHOTOS = 16
# The second step has the optimiser's state, and nothing grows after it.
_STEPS_FOR_MEMORY = 2


def measure_step(options: StepOptions, progress: Progress) -> dict[str, Any]:
    """Measure a training step, each candidate in a process of its own.

    Returns:
        ``measurements``, one for each size of batch and vocabulary; ``flops``; ``memory`` and ``profile``, of the
        largest batch, if asked for.
    """
    results: dict[str, Any] = {}
    if options.memory:
        # before others fill the device
        results['memory'] = {name: in_own_process(memory_of_step, options, name) for name in options.candidates}
        progress('memory measured')
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        candidates = {
            name: stack.enter_context(Resident(Candidate, options, name, folder / name)) for name in options.candidates
        }
        progress('models built')
        results['measurements'] = list(_measure_all(options, candidates, progress))
        if options.profile:
            results['profile'] = candidates[PROJECT].ask('profile_to', options.profile)
    results['flops'] = _add_utilisation(options, results['measurements'])
    return results


class Candidate:
    """A candidate's step, in the process that it has to itself.

    This project's tools keep memory that they free; the baseline leaves the allocator as it is.

    Args:
        options: What is measured.
        name: Which of `options.candidates`.
        folder: Where files are made, its own.
    """

    def __init__(self, options: StepOptions, name: str, folder: Path) -> None:
        if name == PROJECT:
            keep_freed_memory()
        folder.mkdir()
        self.options = options
        self.name = name
        self.photos = make_photos(options, folder)
        self.step = build_step(name, options, self.photos)

    def take(self, batch_size: int) -> None:
        """Take batches of another size."""
        self.step.take(_batches(self.name, self.options, self.photos, batch_size))

    def set_classes(self, classes: int) -> None:
        """Put a vocabulary of so many classes in place, and let the peak of memory count from here."""
        self.step.set_classes(classes)
        forget_peak_memory(self.options.device)

    def run(self) -> Timing:
        """Take a turn: one step, after those that it needs to settle."""
        for _ in range(self.options.settle):
            self.step()
        return self.step()

    def log(self) -> dict[str, float]:
        """What the last step reported."""
        return self.step.log

    def peak_memory(self) -> int | None:
        """Most bytes since the vocabulary was put in place; see `machine.peak_memory`."""
        return peak_memory(self.options.device)

    def profile_to(self, path: str) -> list[dict[str, Any]]:
        """Profile one step; see `profiling.profile_to`."""
        return profile_to(path, self.step, self.options.device)


def memory_of_step(options: StepOptions, name: str) -> dict[str, int | None]:
    """Bytes that one candidate takes: ``built``, with models and data in place, and ``peak``. For a fresh process."""
    with TemporaryDirectory() as folder:
        candidate = Candidate(options, name, Path(folder) / name)
        built = memory_in_use(options.device)
        for _ in range(_STEPS_FOR_MEMORY):
            candidate.run()
        return {'built': built, 'peak': candidate.peak_memory()}


def make_photos(options: StepOptions, folder: Path) -> PhotoFolder:
    """Photographs enough for a step."""
    # few enough that all of them are in the teacher's cache after the warm-up
    largest = max(options.batch_sizes)
    count = largest if options.teacher_cache else max(_PHOTOS, largest)
    return PhotoFolder(folder, count, device=options.device)


def build_step(name: str, options: StepOptions, photos: PhotoFolder) -> TrainingStep:
    """Step of a candidate with the largest batch; its weights, images and boxes are the same for every candidate."""
    batches = _batches(name, options, photos, max(options.batch_sizes))
    with _quiet_log():
        if name == PROJECT:
            return ProjectStep(options, batches, photos.folder)
        return ReferenceLikeStep(options, batches)


def _batches(name: str, options: StepOptions, photos: PhotoFolder, batch_size: int) -> Iterator[Any]:
    if name == PROJECT:
        fingerprint = options.teacher_cache is not None
        return photos.batches(options.image_size, batch_size, fingerprint=fingerprint)
    return photos.reference_like_batches(options.image_size, batch_size)


@contextmanager
def _quiet_log() -> Iterator[None]:
    """Errors only, for mmengine lists every parameter that an optimiser takes or leaves."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel('ERROR')
    try:
        yield
    finally:
        logger.setLevel(level)


def _measure_all(options: StepOptions, candidates: dict[str, Resident], progress: Progress) -> Iterator[dict[str, Any]]:
    for batch_size in sorted(options.batch_sizes):
        for candidate in candidates.values():
            candidate.ask('take', batch_size)
        for classes in options.classes:
            for candidate in candidates.values():
                candidate.ask('set_classes', classes)
            progress(f'{batch_size} images, {classes} classes')
            yield {'setting': f'{classes} classes', **_measure(options, candidates, batch_size, progress)}


def _measure(
    options: StepOptions, candidates: dict[str, Resident], batch_size: int, progress: Progress
) -> dict[str, Any]:
    # fills the cache: a small batch that is loaded takes others of the photographs in each step
    steps_to_fill = ceil(max(options.batch_sizes) / batch_size) if options.load else 1
    warmup = max(options.warmup, steps_to_fill if options.teacher_cache else 0)
    steps = {name: partial(candidate.ask, 'run') for name, candidate in candidates.items()}
    runs = take_turns(steps, repeats=options.repeats, warmup=warmup, progress=progress)
    summary = summarize(runs, batch_size)
    if is_gpu(options.device):
        for name, candidate in candidates.items():
            summary['candidates'][name]['peak_memory'] = candidate.ask('peak_memory')
    return {**summary, 'logs': {name: candidate.ask('log') for name, candidate in candidates.items()}}


def _add_utilisation(options: StepOptions, measurements: list[dict[str, Any]]) -> dict[str, Any]:
    """Arithmetic per image; each measurement is told which share of what the device can do at best was reached."""
    archs = arch_named(options.student), arch_named(options.teacher)
    flops = step_flops(*archs, options.image_size, trainable_blocks(options.student))
    dtypes = {
        name: options.dtype if name == PROJECT else options.baseline_dtype or options.dtype
        for name in options.candidates
    }
    rates = {
        dtype: matmul_rate(options.device, resolve_dtype(dtype), options.matmul_size)
        for dtype in dict.fromkeys(dtypes.values())
    }
    for measurement in measurements:
        for name, candidate in measurement['candidates'].items():
            cached = name == PROJECT and options.teacher_cache is not None
            done = flops[TOTAL] - (flops['teacher'] if cached else 0)
            candidate['utilisation'] = candidate['images_per_second'] * done / rates[dtypes[name]]
    return {'per_image': flops, 'matmul_rates': rates}
