"""What a training step costs: time by stage, memory, arithmetic, and how that grows with the vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mmengine.logging import MMLogger

from densevlm_mm.apis import keep_freed_memory
from densevlm_mm.vlm.factory import resolve_dtype

from .flops import step_flops
from .machine import forget_peak_memory, in_own_process, is_gpu, matmul_rate, memory_in_use, peak_memory
from .options import PROJECT, Progress, StepOptions
from .photos import PhotoFolder
from .profiling import profile_to
from .synthetic import arch_named
from .timing import TOTAL, summarize, take_turns
from .training import ProjectStep, ReferenceLikeStep, TrainingStep, trainable_blocks

# Images that are made; a step that loads takes others each time.
_PHOTOS = 16
# The second step has the optimiser's state, and nothing grows after it.
_STEPS_FOR_MEMORY = 2


def measure_step(options: StepOptions, progress: Progress) -> dict[str, Any]:
    """Measure a training step.

    Returns:
        ``measurements``, one for each size of batch and vocabulary; ``flops``; ``memory`` and ``profile``, of the
        largest batch, if asked for.
    """
    results: dict[str, Any] = {}
    if options.memory:
        # before this process fills the device itself
        results['memory'] = {name: in_own_process(memory_of_step, options, name) for name in options.candidates}
        progress('memory measured')
    with TemporaryDirectory() as folder:
        photos = make_photos(options, Path(folder))
        steps = build_steps(options, photos)
        progress('models built')
        results['measurements'] = list(_measure_all(options, photos, steps, progress))
        if options.profile:
            results['profile'] = profile_to(options.profile, steps[PROJECT], options.device)
    results['flops'] = _add_utilisation(options, results['measurements'])
    return results


def build_steps(options: StepOptions, photos: PhotoFolder) -> dict[str, TrainingStep]:
    """Both steps with the same weights, images and boxes, those of the largest batch."""
    return {name: _build(name, options, photos) for name in options.candidates}


def memory_of_step(options: StepOptions, name: str) -> dict[str, int | None]:
    """Bytes that one candidate takes: ``built``, with models and data in place, and ``peak``. For a fresh process."""
    keep_freed_memory()  # as tools/train.py does
    with TemporaryDirectory() as folder:
        step = _build(name, options, make_photos(options, Path(folder)))
        built = memory_in_use(options.device)
        for _ in range(_STEPS_FOR_MEMORY):
            step()
        return {'built': built, 'peak': peak_memory(options.device)}


def make_photos(options: StepOptions, folder: Path) -> PhotoFolder:
    """Photographs enough for a step."""
    # all of them are in the teacher's cache after the first step
    largest = max(options.batch_sizes)
    count = largest if options.teacher_cache else max(_PHOTOS, largest)
    return PhotoFolder(folder, count, device=options.device)


def _build(name: str, options: StepOptions, photos: PhotoFolder) -> TrainingStep:
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


def _measure_all(
    options: StepOptions, photos: PhotoFolder, steps: dict[str, TrainingStep], progress: Progress
) -> Iterator[dict[str, Any]]:
    for batch_size in sorted(options.batch_sizes):
        for name, step in steps.items():
            step.take(_batches(name, options, photos, batch_size))
        for classes in options.classes:
            for step in steps.values():
                step.set_classes(classes)
            progress(f'{batch_size} images, {classes} classes')
            yield {'setting': f'{classes} classes', **_measure(options, steps, batch_size, progress)}


def _measure(
    options: StepOptions, steps: dict[str, TrainingStep], batch_size: int, progress: Progress
) -> dict[str, Any]:
    forget_peak_memory(options.device)
    warmup = max(options.warmup, 1 if options.teacher_cache else 0)  # fills the cache
    runs = take_turns(steps, repeats=options.repeats, warmup=warmup, progress=progress)
    logs = {name: step.log for name, step in steps.items()}
    peak = {'peak_memory': peak_memory(options.device)} if is_gpu(options.device) else {}
    return {**summarize(runs, batch_size), 'logs': logs, **peak}


def _add_utilisation(options: StepOptions, measurements: list[dict[str, Any]]) -> dict[str, Any]:
    """Arithmetic per image; each measurement is told which share of what the device can do at best was reached."""
    archs = arch_named(options.student), arch_named(options.teacher)
    flops = step_flops(*archs, options.image_size, trainable_blocks(options.student))
    rate = matmul_rate(options.device, resolve_dtype(options.dtype), options.matmul_size)
    for measurement in measurements:
        for name, candidate in measurement['candidates'].items():
            cached = name == PROJECT and options.teacher_cache is not None
            done = flops[TOTAL] - (flops['teacher'] if cached else 0)
            candidate['utilisation'] = candidate['images_per_second'] * done / rate
    return {'per_image': flops, 'matmul_rate': rate}
