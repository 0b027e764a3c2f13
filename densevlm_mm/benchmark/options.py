"""What the benchmarks can be asked for; the fields are the options of ``tools/analysis_tools/benchmark.py``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from densevlm_mm.vlm.factory import resolve_dtype

#: Names of the candidates, which are the keys of all results.
PROJECT = 'densevlm_mm'
BASELINES = ('reference-like', 'reference-like-fused')
DTYPES = ('float32', 'bfloat16', 'float16')

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What all benchmarks share.

    Attributes:
        baseline: 'reference-like'; 'reference-like-fused', which has fused attention; or 'none'.
        device: 'cpu' or 'cuda'.
        repeats: Rounds that count.
        warmup: Rounds before them that do not.

    Raises:
        ValueError: For a value outside these.
    """

    baseline: str = BASELINES[0]
    device: str = 'cpu'
    repeats: int = 3
    warmup: int = 1

    def __post_init__(self) -> None:
        if self.baseline not in (*BASELINES, 'none'):
            raise ValueError(f"baseline must be one of {BASELINES} or 'none', got {self.baseline!r}")
        if self.repeats < 1 or self.warmup < 0:
            raise ValueError(f'at least one repeat and no fewer than 0 warm-ups, got {self.repeats} and {self.warmup}')
        if torch.device(self.device).type == 'cuda' and not torch.cuda.is_available():
            raise ValueError(f'device {self.device!r} is not there: torch.cuda.is_available() is False')

    @property
    def candidates(self) -> tuple[str, ...]:
        """Names of what is compared, this project first."""
        return (PROJECT,) if self.baseline == 'none' else (PROJECT, self.baseline)

    @property
    def fused(self) -> bool:
        """Whether the baseline's attention is fused."""
        return self.baseline == 'reference-like-fused'


@dataclass(frozen=True, kw_only=True)
class StepOptions(Options):
    """A training step of DenseVLM with random weights.

    Attributes:
        student: Name of an architecture.
        teacher: Name of an architecture.
        image_size: Side of the images in px.
        batch_sizes: Images per step, measured one after the other.
        dtype: Of matrix products; weights that train are fp32.
        baseline_dtype: The same of the baseline; None means that of this project.
        classes: Sizes of the vocabulary, one measurement each.
        compile: Compile the blocks of both towers.
        teacher_cache: 'warm' to read what the teacher said of these images before from a cache on disk.
        load: Also load each batch, in the same process.
        settle: Steps that a candidate takes before the one that is measured, each time it is its turn. In training the
            step before left caches warm; here the other candidate left them full of its own.
        memory: Also measure the peak of memory, each candidate in a process of its own.
        profile: File for the profiler's table of one step of this project.
        matmul_size: Side of the matrices whose product tells what the device can do at best.
    """

    student: str = 'EVA02-CLIP-B-16'
    teacher: str = 'EVA02-CLIP-L-14-336'
    image_size: int = 512
    batch_sizes: tuple[int, ...] = (1,)
    dtype: str = 'float32'
    baseline_dtype: str | None = None
    classes: tuple[int, ...] = (316,)
    compile: bool = False
    teacher_cache: str | None = None
    load: bool = False
    settle: int = 0
    memory: bool = True
    profile: str | None = None
    matmul_size: int = 2048

    def __post_init__(self) -> None:
        super().__post_init__()
        for dtype in (self.dtype, self.baseline_dtype):
            resolve_dtype(dtype)
        if min(self.batch_sizes) < 1:
            raise ValueError(f'a step takes at least one image, got batch_sizes={self.batch_sizes}')
        if self.settle < 0:
            raise ValueError(f'no fewer than 0 steps to settle, got {self.settle}')
        if min(self.classes) < 2:
            raise ValueError(f'at least one thing and one stuff class are needed, got classes={self.classes}')


@dataclass(frozen=True, kw_only=True)
class LoaderOptions(Options):
    """The training pipeline, from JPEGs to normalised batches.

    Attributes:
        images: JPEGs that are made, and loaded in each run.
        image_size: Side of the padded input in px.
        batch_size: Images per batch.
        num_workers: Processes that load; 0 loads in this one.
        sweep_size: Instead of the comparison, numbers of entries of the annotation file, one measurement each.
    """

    images: int = 64
    image_size: int = 512
    batch_size: int = 16
    num_workers: int = 0
    sweep_size: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(Options):
    """Zero-shot classification of regions.

    Attributes:
        arch: Name of an architecture.
        image_size: Side of the images in px.
        images: Images in each run.
        batch_size: Images at once; the baseline takes one.
        regions: Boxes, and as many masks, per image.
        classes: Size of the vocabulary.
        dtype: Of matrix products.
        crops: Also embed the crop of each region as an image, as measurements of their own.
    """

    arch: str = 'EVA02-CLIP-B-16'
    image_size: int = 512
    images: int = 8
    batch_size: int = 8
    regions: int = 8
    classes: int = 133
    dtype: str = 'float32'
    crops: bool = True


@dataclass(frozen=True, kw_only=True)
class InferenceOptions(Options):
    """Dense features of images.

    Attributes:
        arch: Name of an architecture.
        image_size: Side of the images in px.
        batch_size: Images at once.
        dtype: Of the weights; the baseline keeps fp32 weights and casts.
    """

    arch: str = 'EVA02-CLIP-B-16'
    image_size: int = 512
    batch_size: int = 1
    dtype: str = 'float32'
