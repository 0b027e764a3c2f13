"""DenseVLM: unbiased region-language alignment (Li et al., ICCV 2025, arXiv:2412.06244)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.device import get_device
from mmengine.structures import BaseDataElement
from torch import Tensor

from densevlm_mm.registry import MODELS
from densevlm_mm.vlm import VLM, Vocabulary, build_vocabulary, class_embeddings, load_class_embeddings
from densevlm_mm.vlm.architectures import resolve_arch
from densevlm_mm.vlm.factory import resolve_dtype

from .base import RegionDistiller, batch_boxes
from .teacher_cache import TeacherCache
from .teachers import FrozenDenseTeacher, load_on_device


@MODELS.register_module()
class DenseVLM(RegionDistiller):
    """Align a student's region features with a stronger, frozen VLM through the classes of a vocabulary.

    Args:
        student: Arguments of `load_vlm`, and ``trainable_blocks``.
        teacher: Arguments of `load_vlm`. With ``dtype`` its tower runs in half precision. Its text tower is dropped
            once the class embeddings are made.
        vocabulary: Things and stuff that regions are matched with; anything that `build_vocabulary` takes. It is
            reordered things first.
        loss: Config of the loss; ``num_things`` is filled in from the vocabulary unless given.
        templates: Prompt templates of the vocabulary.
        normalize_text: L2-normalise the class embeddings. Off as released: their norms act as class temperatures.
        text_embeddings: Optional files ``dict(student=..., teacher=...)`` with ready class embeddings, rows in the
            order of the vocabulary, which then has to list its things first.
        teacher_cache: Keep the teacher's features on disk: ``folder`` and further arguments of `TeacherCache`. The
            teacher is then loaded when something is missing there. None runs it in every step.
        eval_vocabulary: See `RegionModel`.
        eval_templates: See `RegionModel`.
        data_preprocessor: See `RegionModel`.

    Raises:
        ValueError: If the vocabulary lacks things or stuff, or a config part is unusable.
    """

    def __init__(
        self,
        *,
        student: Mapping[str, Any],
        teacher: Mapping[str, Any],
        vocabulary: Any,
        loss: Mapping[str, Any],
        templates: str | Sequence[str] = 'vild',
        normalize_text: bool = False,
        text_embeddings: Mapping[str, str] | None = None,
        teacher_cache: Mapping[str, Any] | None = None,
        eval_vocabulary: Any = None,
        eval_templates: str | Sequence[str] = 'vild',
        data_preprocessor: Mapping | None = None,
    ) -> None:
        super().__init__(
            student=student,
            eval_vocabulary=eval_vocabulary,
            eval_templates=eval_templates,
            data_preprocessor=data_preprocessor,
        )
        self.vocabulary = _training_vocabulary(vocabulary, ready_embeddings=text_embeddings is not None)
        files = dict(text_embeddings or {})
        if set(files) - {'student', 'teacher'}:
            raise ValueError(f"text_embeddings has the keys 'student' and 'teacher', got {sorted(files)}")
        self._teacher_config, self._pixels = teacher, self.pixels
        self.cache: TeacherCache | None = None
        teacher_vlm = self._prepare_teacher(teacher_cache, data_preprocessor)
        device = teacher.get('device', get_device())

        def embed(who: str, embed_dim: int, make: Callable[[], Tensor]) -> Tensor:
            if who in files:
                text = load_class_embeddings(files[who], self.vocabulary.names, embed_dim)
            else:
                text = make().to(device)
            return F.normalize(text, dim=-1) if normalize_text else text

        def embed_by_teacher() -> Tensor:
            return class_embeddings(teacher_vlm or self._load_teacher(), self.vocabulary, templates)

        make = embed_by_teacher
        if self.cache is not None:
            make = partial(self.cache.class_embeddings, self.vocabulary, templates, embed_by_teacher)
        self.register_buffer('teacher_text', embed('teacher', resolve_arch(teacher['arch'])['embed_dim'], make), False)
        make = partial(class_embeddings, self.student.to(device), self.vocabulary, templates)
        self.register_buffer('student_text', embed('student', self.student.embed_dim, make), False)
        self.alignment_loss = MODELS.build({'num_things': self.vocabulary.num_things, **loss})

    def loss(self, inputs: Tensor, data_samples: list[BaseDataElement]) -> dict[str, Tensor]:
        """Alignment loss of a batch.

        Args:
            inputs: ``(B, 3, H, W)``, normalised for the student; the teacher sees the same pixels, normalised its way.
            data_samples: ``gt_regions.boxes`` (N, 4), xyxy in 0..1; with a teacher cache also what it asks for.

        Returns:
            See `DecoupledAlignmentLoss`. With a teacher cache also ``cached_share``, that of the images which needed no
            teacher, for the log.
        """
        boxes, valid = batch_boxes(data_samples, inputs.device)
        log = {}
        if self.cache is None:
            teacher = self.teacher(inputs, boxes)
        else:
            teacher, log['cached_share'] = self.cached_regions(inputs, data_samples)
        student = self.student_regions(inputs, boxes)
        losses = self.alignment_loss(
            student.flatten(0, 1), teacher.flatten(0, 1), self.student_text, self.teacher_text, valid.flatten()
        )
        return losses | log

    def cached_regions(self, inputs: Tensor, data_samples: list[BaseDataElement]) -> tuple[Tensor, Tensor]:
        """Teacher's box features ``(B, N, C)`` by way of its cache, and the share of the images that were in it.

        See `TeacherCache.features`.
        """
        features, share = self.cache.features(inputs, data_samples, self._run_teacher)
        return features, torch.tensor(share)

    def _run_teacher(self, inputs: Tensor, boxes: Tensor) -> Tensor:
        if self.teacher is None:
            self._load_teacher()
            self.teacher.to(inputs.device)
        return self.teacher(inputs, boxes)

    def _prepare_teacher(self, cache: Mapping[str, Any] | None, data_preprocessor: Mapping | None) -> VLM | None:
        """Load the teacher, unless a cache knows it by its file; open the cache."""
        config = self._teacher_config
        teacher = None if cache is not None and config.get('checkpoint') is not None else self._load_teacher()
        if cache is not None:
            state = None if teacher is None else teacher.state_dict()
            pixels = [data_preprocessor, self._pixels]
            self.cache = TeacherCache(**cache, teacher=config, state=state, pixels=pixels)
        return teacher

    def _load_teacher(self) -> VLM:
        """Load the teacher and hold its image half. Class embeddings are made in fp32 even where that is not."""
        config = self._teacher_config
        # a run with a cache must not tell by its random numbers whether this was needed
        with torch.random.fork_rng(devices=[], enabled=self.cache is not None):
            vlm = load_on_device({**config, 'dtype': None})
        tower = vlm.visual.to(dtype=resolve_dtype(config.get('dtype')))
        self.hold_teacher(FrozenDenseTeacher(tower, vlm.dense_mode, self._pixels))
        return vlm


def _training_vocabulary(config: Any, *, ready_embeddings: bool) -> Vocabulary:
    vocabulary = build_vocabulary(config)
    if not vocabulary.num_things or not vocabulary.num_stuff:
        raise ValueError(
            f'the vocabulary has {vocabulary.num_things} thing and {vocabulary.num_stuff} stuff classes; '
            'decoupled alignment needs both'
        )
    ordered = vocabulary.things_first()
    if ready_embeddings and ordered.names != vocabulary.names:
        raise ValueError('rows of ready text_embeddings follow the vocabulary, which must list its things first')
    return ordered
