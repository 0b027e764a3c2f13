"""What a training step costs: time by stage, memory, arithmetic, and how that grows with the vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mmengine.logging import MMLogger

from densevlm_mm.vlm.factory import resolve_dtype

from .flops import step_flops
from .machine import in_own_process, matmul_rate, memory_in_use, peak_memory
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
        ``measurements``, one for each size of the vocabulary; ``flops``; ``memory`` and ``profile`` if asked for.
    """
    results: dict[str, Any] = {}
    if options.memory:
        # before this process fills the device itself
        results['memory'] = {name: in_own_process(memory_of_step, options, name) for name in options.candidates}
        progress('memory measured')
    with TemporaryDirectory() as folder:
        steps = build_steps(options, Path(folder))
        progress('models built')
        results['measurements'] = [_measure_classes(options, steps, classes, progress) for classes in options.classes]
        if options.profile:
            results['profile'] = profile_to(options.profile, steps[PROJECT], options.device)
    results['flops'] = _flops(options, results['measurements'][0])
    return results


def build_steps(options: StepOptions, folder: Path) -> dict[str, TrainingStep]:
    """Both steps with the same weights, images and boxes."""
    photos = _make_photos(options, folder)
    steps = {name: _build(name, options, photos) for name in options.candidates}
    for step in steps.values():
        if isinstance(step, ReferenceLikeStep):
            step.copy_weights(steps[PROJECT].model)
    return steps


def memory_of_step(options: StepOptions, name: str) -> dict[str, int | None]:
    """Bytes that one candidate takes: ``built``, with models and data in place, and ``peak``. For a fresh process."""
    with TemporaryDirectory() as folder:
        step = _build(name, options, _make_photos(options, Path(folder)))
        built = memory_in_use(options.device)
        for _ in range(_STEPS_FOR_MEMORY):
            step()
        return {'built': built, 'peak': peak_memory(options.device)}


def _make_photos(options: StepOptions, folder: Path) -> PhotoFolder:
    # all of them are in the teacher's cache after the first step
    count = options.batch_size if options.teacher_cache else max(_PHOTOS, options.batch_size)
    return PhotoFolder(folder, count, device=options.device)


def _build(name: str, options: StepOptions, photos: PhotoFolder) -> TrainingStep:
    sizes = options.image_size, options.batch_size
    with _quiet_log():
        if name == PROJECT:
            batches = photos.batches(*sizes, fingerprint=options.teacher_cache is not None)
            return ProjectStep(options, batches, photos.folder)
        return ReferenceLikeStep(options, photos.reference_like_batches(*sizes))


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


def _measure_classes(
    options: StepOptions, steps: dict[str, TrainingStep], classes: int, progress: Progress
) -> dict[str, Any]:
    for step in steps.values():
        step.set_classes(classes)
    progress(f'{classes} classes')
    warmup = max(options.warmup, 1 if options.teacher_cache else 0)  # fills the cache
    runs = take_turns(steps, repeats=options.repeats, warmup=warmup, progress=progress)
    logs = {name: step.log for name, step in steps.items()}
    return {'setting': f'{classes} classes', **summarize(runs, options.batch_size), 'logs': logs}


def _flops(options: StepOptions, measurement: dict[str, Any]) -> dict[str, Any]:
    """Arithmetic per image, and which share of what the device can do at best each candidate reaches."""
    archs = arch_named(options.student), arch_named(options.teacher)
    flops = step_flops(*archs, options.image_size, trainable_blocks(options.student))
    rate = matmul_rate(options.device, resolve_dtype(options.dtype), options.matmul_size)
    utilisation = {}
    for name, candidate in measurement['candidates'].items():
        cached = name == PROJECT and options.teacher_cache is not None
        done = flops[TOTAL] - (flops['teacher'] if cached else 0)
        utilisation[name] = candidate['images_per_second'] * done / rate
    return {'per_image': flops, 'matmul_rate': rate, 'utilisation': utilisation}
