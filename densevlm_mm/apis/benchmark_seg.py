"""Segmentation benchmarks: one model, many data sets, one table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmcv.transforms import LoadImageFromFile, Resize
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.dist import barrier, get_rank, get_world_size
from mmengine.registry import DefaultScope
from mmseg.datasets.transforms import PackSegInputs
from mmseg.models import BaseSegmentor
from torch.utils.data import DataLoader, Subset

from densevlm_mm import __version__
from densevlm_mm.registry import DATASETS, MODELS
from densevlm_mm.seg import LoadLabelMap, OVIoUMetric, OVSegDataset, TrainingFreeSegmentor
from densevlm_mm.seg.image_counts import ImageCounts
from densevlm_mm.seg.protocols import Protocol, ProtocolError
from densevlm_mm.vlm import Vocabulary
from densevlm_mm.vlm.checkpoints import read_meta
from densevlm_mm.vlm.digest import sha256
from densevlm_mm.vlm.factory import locate_checkpoint
from densevlm_mm.vlm.prompts import get_templates

from .weights import leave_to_weights, load_model_weights

SUITES = {
    'training-free-8': ('voc21', 'ctx60', 'coco_object', 'voc20', 'cityscapes', 'ctx59', 'ade150', 'coco_stuff'),
    'catseg-6': ('ade847', 'ctx459', 'ade150', 'ctx59', 'voc20', 'pas20b'),
}
DEFAULT_ARCH = 'EVA02-CLIP-B-16'
# name of a benchmark, images done, all images
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model under test.

    Attributes:
        model: In evaluation mode, on the device where it is to run.
        facts: What it is, in what JSON knows; every figure depends on all of it.
    """

    model: BaseSegmentor
    facts: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Options:
    """How benchmarks are run. But for the data and the limit, no figure depends on it.

    Attributes:
        data_root: Folder with the folders of the data sets.
        out: Folder for tables and counts.
        limit: Only the first so many images of each data set; None for all.
        batch_size: Images at a time.
        num_workers: Processes that load images.
    """

    data_root: Path
    out: Path
    limit: int | None = None
    batch_size: int = 1
    num_workers: int = 0


def training_free_candidate(
    checkpoint: str, protocol: Protocol, *, arch: str | None = None, dense_mode: str | None = None, device: str = 'cpu'
) -> Candidate:
    """A CLIP as it is, in a `TrainingFreeSegmentor`.

    Args:
        checkpoint: Anything that `load_vlm` takes.
        protocol: One of those to come, for what the method says of the model.
        arch: See `load_vlm`; None: what the checkpoint says, else ``DEFAULT_ARCH``.
        dense_mode: Instead of the method's, and that instead of the checkpoint's.
        device: Where the model goes.

    Raises:
        ProtocolError: If the method is for models that have windows of their own.
    """
    if protocol.window is None or protocol.stride is None:
        raise ProtocolError(f'method {protocol.method!r} has no window and stride: it is for a model with a --config')
    path = locate_checkpoint(arch or DEFAULT_ARCH, checkpoint)
    arch = arch or read_meta(path).get('arch') or DEFAULT_ARCH
    mode = dense_mode or protocol.dense_mode
    vlm = {'arch': arch, 'checkpoint': checkpoint, 'dense_mode': mode}
    model = TrainingFreeSegmentor(vlm, ['object'])  # each benchmark brings its own classes
    facts = {
        'model': type(model).__name__,
        'arch': arch,
        'dense_mode': model.vlm.dense_mode,
        'checkpoint': str(checkpoint),
        'sha256': sha256(path),
    }
    return Candidate(model=model.to(device).eval(), facts=facts)


def configured_candidate(config: Config, checkpoint: str, *, device: str = 'cpu') -> Candidate:
    """A segmentor of a config, such as a `CATSeg`, with all its weights; it needs no file of its CLIP.

    Raises:
        FileNotFoundError, CheckpointError: See `load_weights`.
        ValueError: If the checkpoint was trained in another dense mode than the config names.
    """
    config = leave_to_weights(config, checkpoint)
    trained_in = read_meta(checkpoint).get('dense_mode')
    with DefaultScope.overwrite_default_scope(config.get('default_scope', 'mmseg')):
        model = MODELS.build(config.model)
    mode = model.vlm.dense_mode
    if trained_in not in (None, mode):
        raise ValueError(
            f'{checkpoint} was trained in dense mode {trained_in!r}, but the config says {mode!r}: '
            f'give --cfg-options model.vlm.dense_mode={trained_in}'
        )
    load_model_weights(model, checkpoint)
    facts = {
        'model': type(model).__name__,
        'dense_mode': mode,
        'config': config.model.to_dict(),
        'checkpoint': str(checkpoint),
        'sha256': sha256(Path(checkpoint)),
    }
    return Candidate(model=model.to(device).eval(), facts=facts)


def run_benchmark(
    candidate: Candidate, protocol: Protocol, options: Options, progress: Progress | None = None
) -> dict[str, Any]:
    """Evaluate a model on one data set, going on where an earlier run of the same was stopped.

    In distributed runs every process takes a part of the images, and all return the same.

    Args:
        candidate: The model; it has the vocabulary of this benchmark afterwards.
        protocol: What to evaluate.
        options: How.
        progress: Called after every batch, on the first process.

    Returns:
        ``benchmark``, ``title``, ``classes``, ``images``, ``published_images``, ``metrics`` and ``settings``.
    """
    dataset = build_dataset(protocol, options.data_root, limit=options.limit)
    configure(candidate.model, protocol, dataset.vocabulary)
    settings = describe_settings(candidate, protocol, dataset)
    counts = ImageCounts(options.out / 'counts', protocol.benchmark, settings, rank=get_rank())
    metric = OVIoUMetric(out_json=str(options.out / f'{protocol.benchmark}.json') if get_rank() == 0 else None)
    metric.dataset_meta = dataset.metainfo
    names = [_image_name(dataset, dataset.get_data_info(index)) for index in range(len(dataset))]
    known = counts.read()
    barrier()  # nobody adds to what others still read
    todo = [index for index, name in enumerate(names) if name not in known]
    done = len(names) - len(todo)
    for found in _count_images(candidate.model, dataset, todo[get_rank() :: get_world_size()], metric, options):
        counts.add(found)
        done += len(found) * get_world_size()
        if progress is not None and get_rank() == 0:
            progress(protocol.benchmark, min(done, len(names)), len(names))
    barrier()
    known = counts.read()
    lost = [name for name in names if name not in known]
    if lost:
        raise RuntimeError(
            f'{len(lost)} of {len(names)} images were not counted, or elsewhere: {options.out} must be a folder that '
            'all machines share'
        )
    return {
        'benchmark': protocol.benchmark,
        'title': protocol.title,
        'classes': len(dataset.vocabulary),
        'images': len(names),
        'published_images': protocol.num_images,
        'metrics': metric.compute_metrics([known[name] for name in names]),
        'settings': settings,
    }


def build_dataset(protocol: Protocol, data_root: Path, *, limit: int | None = None) -> OVSegDataset:
    """The data set of a protocol; label maps keep their size while images are resized.

    Args:
        protocol: What to evaluate.
        data_root: See `Options`, here and below.
        limit: Only the first so many images.

    Raises:
        FileNotFoundError: If the images or the label maps are not there.
        ProtocolError: If the vocabulary cannot be read.
    """
    pipeline = [
        LoadImageFromFile(),
        Resize(scale=(protocol.long_side, protocol.short_side), keep_ratio=True),
        LoadLabelMap(),
        PackSegInputs(),
    ]
    return DATASETS.build(
        {
            'type': f'densevlm_mm.{protocol.dataset}',
            'vocabulary': protocol.read_vocabulary(data_root),
            'pipeline': pipeline,
            'test_mode': True,
            'indices': limit,
            'serialize_data': False,  # a few thousand paths
            **protocol.dataset_options(data_root),
        }
    )


def configure(model: BaseSegmentor, protocol: Protocol, vocabulary: Vocabulary) -> None:
    """Give a model the classes and the settings of a benchmark.

    Raises:
        ProtocolError: If the method has settings for a model that takes none.
    """
    settings = protocol.model_settings()
    if settings and not isinstance(model, TrainingFreeSegmentor):
        raise ProtocolError(
            f'method {protocol.method!r} has settings for a CLIP as it is, but a {type(model).__name__} has its own: '
            "take one without, such as 'catseg'"
        )
    model.set_vocabulary(vocabulary, **settings)


def describe_settings(candidate: Candidate, protocol: Protocol, dataset: OVSegDataset) -> dict[str, Any]:
    """Everything that the counts of an image depend on, in what JSON knows."""
    vocabulary = dataset.vocabulary
    phrases, classes = vocabulary.expanded()
    return {
        'version': __version__,
        'model': {key: value for key, value in candidate.facts.items() if key != 'checkpoint'},  # its digest tells
        'images': {'short_side': protocol.short_side, 'long_side': protocol.long_side},
        'settings': protocol.model_settings(),
        'templates': _templates_of(candidate.model),
        'names': vocabulary.names,
        'phrases': [[phrase, index] for phrase, index in zip(phrases, classes, strict=True)],
        'background': vocabulary.background,
        'dataset': protocol.dataset,
        'data': str(Path(dataset.data_root).resolve()),
        'image_dir': protocol.image_dir,
        'label_dir': protocol.label_dir,
        'label_suffix': dataset.seg_map_suffix,
        'ignore_index': dataset.ignore_index,
        'zero_label': dataset.zero_label,
    }


@torch.no_grad()
def _count_images(
    model: BaseSegmentor, dataset: OVSegDataset, todo: list[int], metric: OVIoUMetric, options: Options
) -> Iterator[dict[str, Any]]:
    """Counts of one batch after the other, by image."""
    loader = DataLoader(
        Subset(dataset, todo),
        batch_size=options.batch_size,
        num_workers=options.num_workers,
        collate_fn=pseudo_collate,
    )
    for batch in loader:
        samples = [sample.to_dict() for sample in model.test_step(batch)]
        metric.process(batch, samples)
        yield dict(zip((_image_name(dataset, sample) for sample in samples), metric.results, strict=True))
        metric.results.clear()


def _templates_of(model: BaseSegmentor) -> list[str] | None:
    """Prompt templates word by word, since a file of them may be edited; None for models that have none."""
    if isinstance(model, TrainingFreeSegmentor):
        return list(get_templates(model.view.templates))
    return list(model.templates) if hasattr(model, 'templates') else None


def _image_name(dataset: OVSegDataset, entry: Mapping[str, Any]) -> str:
    """Path within the data set, whatever folder the program was started in."""
    return Path(entry['img_path']).relative_to(dataset.data_root).as_posix()
