"""Training steps of both candidates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.optim import OptimWrapper, build_optim_wrapper
from torch import Tensor
from torch.optim import AdamW

from densevlm_mm.models import DenseVLM
from densevlm_mm.registry import MODELS, OPTIM_WRAPPERS
from densevlm_mm.vlm import VLM, load_vlm
from densevlm_mm.vlm.architectures import build_vision_tower, resolve_arch
from densevlm_mm.vlm.towers import VisionTower

from .options import StepOptions
from .reference_like import alignment_loss, box_features, dense_features, valid_boxes
from .synthetic import arch_named, class_rows, num_things
from .timing import StageClock, Timing

# of configs/_base_/schedules/densevlm_11088.py
ADAMW = dict(lr=1e-5, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
CONSTRUCTOR = 'densevlm_mm.DecayGroups'
_MAX_LOGIT_SCALE = math.log(100)
_SCORE_THR = 0.3
_SEED = 0


class TrainingStep:
    """A training step whose stages are timed.

    Args:
        options: What is measured.
        batches: Where it takes a batch from: one for good, or, if `options` say so, another one for each step.

    Attributes:
        log: What the last step reported.
    """

    wrapper: OptimWrapper

    def __init__(self, options: StepOptions, batches: Iterator[Any]) -> None:
        self.options = options
        self.clock = StageClock(options.device)
        self.log: dict[str, float] = {}
        self.take(batches)

    def take(self, batches: Iterator[Any]) -> None:
        """Take batches from somewhere else."""
        self._batches = batches
        self._batch = None if self.options.load else next(batches)

    def __call__(self) -> Timing:
        """Run one step."""
        self.clock.start()
        batch = self._batch
        if self.options.load:
            batch = next(self._batches)
            self.clock.lap('load')
        log = self._step(batch)
        self.clock.lap('optimizer')
        timing = self.clock.stop()
        self.log = {key: float(value.detach()) for key, value in log.items()}
        return timing

    def set_classes(self, classes: int) -> None:
        """Put a vocabulary of so many classes in place."""
        raise NotImplementedError

    def _step(self, batch: Any) -> Mapping[str, Tensor]:
        raise NotImplementedError

    def _end_of(self, stage: str) -> Callable[..., None]:
        """A hook that ends a stage."""
        return lambda *_: self.clock.lap(stage)


class ProjectStep(TrainingStep):
    """`DenseVLM.train_step`, as the runner calls it; hooks tell where its stages end.

    Args:
        options: What is measured.
        batches: Batches as the data loader gives them.
        folder: Where files are made.
    """

    def __init__(self, options: StepOptions, batches: Iterator[dict], folder: Path) -> None:
        super().__init__(options, batches)
        model = self.model = build_distiller(options, folder)
        recipe = dict(optimizer=dict(type='AdamW', **ADAMW, fused=True), constructor=CONSTRUCTOR)
        self.wrapper = build_optim_wrapper(model, {**_wrapper_config(options), **recipe})
        model.data_preprocessor.register_forward_hook(self._end_of('transfer'))
        self._watch_stem(model.student.visual)
        model.alignment_loss.register_forward_pre_hook(self._end_of('student'))
        model.alignment_loss.register_forward_hook(self._end_of('loss'))
        self.wrapper.optimizer.register_step_pre_hook(self._end_of('backward'))
        self.set_classes(options.classes[0])

    def _watch_stem(self, tower: VisionTower) -> None:
        """What comes before the student's first layer is the teacher, or its cache."""
        stem, end_of_teacher = tower.stem, self._end_of('teacher')

        def timed_stem(images: Tensor) -> Tensor:
            end_of_teacher()
            return stem(images)

        tower.stem = timed_stem

    def set_classes(self, classes: int) -> None:
        self.model.student_text = class_rows(classes, self.model.student_text.shape[1], self.clock.device)
        self.model.teacher_text = class_rows(classes, self.model.teacher_text.shape[1], self.clock.device)
        self.model.alignment_loss.num_things = num_things(classes)

    def _step(self, batch: dict) -> Mapping[str, Tensor]:
        return self.model.train_step(batch, self.wrapper)


class ReferenceLikeStep(TrainingStep):
    """The same step the plain way.

    Both models are whole CLIPs with fp32 weights; every weight of the teacher asks for a gradient, though it runs
    without. Regions are chosen by boolean indices.

    Args:
        options: What is measured.
        batches: Images (B, 3, H, W), boxes (B, M, 5) and crops.
    """

    def __init__(self, options: StepOptions, batches: Iterator[list[Tensor]]) -> None:
        super().__init__(options, batches)
        torch.manual_seed(_SEED)  # draws the same weights as `build_distiller`
        self.student = load_vlm(arch_named(options.student), device=options.device).requires_grad_(False).train()
        self.student.visual.blocks.requires_grad_(True)
        self.student.logit_scale.requires_grad_(True)
        self.teacher = load_vlm(arch_named(options.teacher), device=options.device)
        self.wrapper = OPTIM_WRAPPERS.build(
            {**_wrapper_config(options, options.baseline_dtype), 'optimizer': _two_groups(self.student)}
        )
        self.wrapper.optimizer.register_step_pre_hook(self._end_of('backward'))
        self.set_classes(options.classes[0])

    def set_classes(self, classes: int) -> None:
        self.student_text = class_rows(classes, self.student.embed_dim, self.clock.device)
        self.teacher_text = class_rows(classes, self.teacher.embed_dim, self.clock.device)
        self.num_things = num_things(classes)

    def _step(self, batch: list[Tensor]) -> Mapping[str, Tensor]:
        images, boxes = (tensor.to(self.clock.device, non_blocking=True) for tensor in batch[:2])
        self.clock.lap('transfer')
        with self.wrapper.optim_context(self.student):
            loss = self._loss(images, boxes)
        self.clock.lap('loss')
        self.wrapper.update_params(loss)
        with torch.no_grad():
            self.student.logit_scale.clamp_(0, _MAX_LOGIT_SCALE)
        return {'loss': loss}

    def _loss(self, images: Tensor, boxes: Tensor) -> Tensor:
        with torch.no_grad():
            teacher = self._regions(self.teacher, images, boxes)
        self.clock.lap('teacher')
        student = self._regions(self.student, images, boxes)
        self.clock.lap('student')
        texts = self.student_text, self.teacher_text
        return alignment_loss(student, teacher, *texts, num_things=self.num_things, score_thr=_SCORE_THR)

    def _regions(self, vlm: VLM, images: Tensor, boxes: Tensor) -> Tensor:
        dense = dense_features(vlm.visual, images, fused=self.options.fused)
        return box_features(dense, valid_boxes(boxes))


def build_distiller(options: StepOptions, folder: Path) -> DenseVLM:
    """The recipe's DenseVLM with random weights and made-up class embeddings, ready to train.

    Args:
        options: What is measured.
        folder: Where the class embeddings and the cache of the teacher go.
    """
    torch.manual_seed(_SEED)
    # one program for each size of batch, rather than one for any
    shared = {'compile': {'dynamic': False}} if options.compile else {}
    teacher = {'arch': arch_named(options.teacher), 'device': options.device, **shared}
    student = {'arch': arch_named(options.student), **shared}
    config = dict(
        type='densevlm_mm.DenseVLM',
        student={**student, 'trainable_blocks': trainable_blocks(options.student)},
        teacher=teacher if options.dtype == 'float32' else {**teacher, 'dtype': options.dtype},
        vocabulary=dict(things=['thing'], stuff=['stuff']),
        text_embeddings={who: _write_rows(folder, who, getattr(options, who)) for who in ('student', 'teacher')},
        loss=dict(type='densevlm_mm.DecoupledAlignmentLoss', score_thr=_SCORE_THR),
        teacher_cache=dict(folder=str(folder / 'teacher_cache')) if options.teacher_cache else None,
    )
    return MODELS.build(config).to(options.device).train()


def _write_rows(folder: Path, who: str, arch: str) -> str:
    """File with class embeddings of two classes: making real ones would take the text towers minutes."""
    path = folder / f'{who}_text.npy'
    np.save(path, class_rows(2, resolve_arch(arch_named(arch))['embed_dim']).numpy())
    return str(path)


def _wrapper_config(options: StepOptions, dtype: str | None = None) -> dict[str, Any]:
    """How a dtype trains; float16 has its gradients scaled where mmengine can, on a GPU."""
    dtype = dtype or options.dtype
    if dtype == 'float32':
        return dict(type='OptimWrapper')
    if dtype == 'float16' and torch.device(options.device).type == 'cuda':
        return dict(type='AmpOptimWrapper', dtype='float16', loss_scale='dynamic')
    return dict(type='densevlm_mm.AutocastOptimWrapper', dtype=dtype)


def _two_groups(vlm: VLM) -> AdamW:
    """Optimiser of what trains: matrices, which decay, and vectors and numbers, which do not."""
    trained = [p for p in vlm.parameters() if p.requires_grad]
    vectors = {'params': [p for p in trained if p.ndim < 2], 'weight_decay': 0.0}
    return AdamW([{'params': [p for p in trained if p.ndim > 1]}, vectors], **ADAMW)


def trainable_blocks(arch: str) -> int:
    """How many blocks an architecture has: all of them train."""
    with torch.device('meta'):
        return len(build_vision_tower(resolve_arch(arch_named(arch))).blocks)
