"""How fast training images come: against the baseline, and with growing annotation files."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from densevlm_mm.datasets import EpochSampler, ImageDataset
from densevlm_mm.models import VLMPreprocessor
from densevlm_mm.vlm.towers import CLIP_MEAN, CLIP_STD

from .options import PROJECT, LoaderOptions, Progress
from .photos import PhotoFolder
from .timing import StageClock, Timing, summarize, take_turns

TORCH, CACHED = f'{PROJECT}, resized by torch', f'{PROJECT}, cached'


def measure_loader(options: LoaderOptions, progress: Progress) -> dict[str, Any]:
    """Measure the training pipeline.

    Returns:
        ``measurements``, and ``mean_file_bytes`` of the images.
    """
    with TemporaryDirectory() as folder:
        photos = PhotoFolder(Path(folder), options.images, device=options.device)
        progress(f'{options.images} images made, {photos.mean_bytes / 1000:.0f} kB each')
        measure = _measure_sizes if options.sweep_size else _measure_loaders
        return {'measurements': [measure(options, photos, progress)], 'mean_file_bytes': photos.mean_bytes}


def _measure_loaders(options: LoaderOptions, photos: PhotoFolder, progress: Progress) -> dict[str, Any]:
    runs = {
        PROJECT: project_epochs(options, photos),
        TORCH: project_epochs(options, photos, backend='torch'),
        # the warm-up fills the cache
        CACHED: project_epochs(options, photos, cache=str(photos.folder / 'resized')),
    }
    if options.baseline != 'none':
        runs[options.baseline] = reference_like_epochs(options, photos)
    timings = take_turns(runs, repeats=options.repeats, warmup=max(1, options.warmup), progress=progress)
    return {'setting': f'{options.num_workers} workers', **summarize(timings, options.images)}


def project_epochs(options: LoaderOptions, photos: PhotoFolder, **load: Any) -> Callable[[], Timing]:
    """One epoch per call through the runner's data loader, uint8, then normalised on the device.

    Args:
        options: What is measured.
        photos: The images.
        load: Options of `LoadResizedImage`.
    """
    dataset = dict(type='densevlm_mm.ImageDataset', **photos.dataset_config(options.image_size, load=load))
    config = dict(
        batch_size=options.batch_size,
        num_workers=options.num_workers,
        persistent_workers=options.num_workers > 0,
        pin_memory=photos.pin_memory,
        collate_fn=dict(type='default_collate'),
        sampler=dict(type='densevlm_mm.EpochSampler', seed=0),
        dataset=dataset,
    )
    loader = Runner.build_dataloader(config)
    mean, std = ([255 * value for value in values] for values in (CLIP_MEAN, CLIP_STD))
    preprocess = VLMPreprocessor(mean=mean, std=std).to(options.device)
    return _timed_epoch(loader, lambda batch: preprocess(batch, training=True), options.device)


def reference_like_epochs(options: LoaderOptions, photos: PhotoFolder) -> Callable[[], Timing]:
    """One epoch per call of the baseline: fp32 images, boxes and crops, of which the crops stay where they are."""
    dataset = photos.reference_like(options.image_size)
    loader = DataLoader(
        dataset,
        batch_size=options.batch_size,
        sampler=EpochSampler(dataset, seed=0),
        num_workers=options.num_workers,
        persistent_workers=options.num_workers > 0,
        pin_memory=photos.pin_memory,
    )
    return _timed_epoch(loader, lambda batch: [part.to(options.device) for part in batch[:2]], options.device)


def _timed_epoch(loader: DataLoader, transfer: Callable[[Any], Any], device: str) -> Callable[[], Timing]:
    clock = StageClock(device)

    def run() -> Timing:
        clock.start()
        for batch in loader:
            clock.lap('load')
            transfer(batch)
            clock.lap('transfer')
        return clock.stop()

    return run


def _measure_sizes(options: LoaderOptions, photos: PhotoFolder, progress: Progress) -> dict[str, Any]:
    """Cost of an item where the annotation file has more and more entries, which point at the same images."""
    runs, seconds_to_build = {}, {}
    for entries in options.sweep_size:
        begun = time.perf_counter()
        dataset = ImageDataset(**photos.dataset_config(options.image_size, entries=entries))
        name = f'{entries} entries'
        seconds_to_build[name] = time.perf_counter() - begun
        progress(f'{name}: built in {seconds_to_build[name]:.2f} s')
        runs[name] = items_of(dataset, options.images)
    timings = take_turns(runs, repeats=options.repeats, warmup=options.warmup, progress=progress)
    summary = summarize(timings, options.images)
    return {'setting': 'entries of the annotation file', **summary, 'seconds_to_build': seconds_to_build}


def items_of(dataset: ImageDataset, images: int) -> Callable[[], Timing]:
    """So many random items per call, in two stages: ``lookup`` in the list of images, and the ``pipeline``."""
    clock = StageClock('cpu')
    generator = torch.Generator().manual_seed(0)

    def run() -> Timing:
        indices = torch.randint(len(dataset), (images,), generator=generator).tolist()
        clock.start()
        for index in indices:
            info = dataset.get_data_info(index)
            clock.lap('lookup')
            dataset.pipeline({**info, 'epoch': 0})
            clock.lap('pipeline')
        return clock.stop()

    return run
