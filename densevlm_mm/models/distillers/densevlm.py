"""DenseVLM: unbiased region-language alignment (Li et al., ICCV 2025, arXiv:2412.06244)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.structures import BaseDataElement
from torch import Tensor

from densevlm_mm.registry import MODELS
from densevlm_mm.vlm import VLM, Vocabulary, build_vocabulary, class_embeddings, load_class_embeddings
from densevlm_mm.vlm.factory import resolve_dtype

from .base import RegionDistiller, batch_boxes
from .teachers import FrozenDenseTeacher, load_on_device, statistics


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

        def embed(vlm: VLM, who: str) -> Tensor:
            if who in files:
                return load_class_embeddings(files[who], self.vocabulary.names, vlm.embed_dim)
            return class_embeddings(vlm, self.vocabulary.names, templates, normalize=normalize_text)

        # class embeddings are made in fp32 even where the tower then runs in half precision
        teacher_vlm = load_on_device({**teacher, 'dtype': None})
        self.register_buffer('teacher_text', embed(teacher_vlm, 'teacher'), persistent=False)
        self.register_buffer('student_text', embed(self.student.to(teacher_vlm.device), 'student'), persistent=False)
        tower = teacher_vlm.visual.to(dtype=resolve_dtype(teacher.get('dtype')))
        self.hold_teacher(FrozenDenseTeacher(tower, teacher_vlm.dense_mode, statistics(self.student.visual)))
        self.alignment_loss = MODELS.build({'num_things': self.vocabulary.num_things, **loss})

    def loss(self, inputs: Tensor, data_samples: list[BaseDataElement]) -> dict[str, Tensor]:
        """Alignment loss of a batch.

        Args:
            inputs: ``(B, 3, H, W)``, normalised for the student; the teacher sees the same pixels, normalised its way.
            data_samples: ``gt_regions.boxes`` (N, 4), xyxy in 0..1.

        Returns:
            See `DecoupledAlignmentLoss`.
        """
        boxes, valid = batch_boxes(data_samples, inputs.device)
        teacher = self.teacher(inputs, boxes)
        student = self.student_regions(inputs, boxes)
        return self.alignment_loss(
            student.flatten(0, 1), teacher.flatten(0, 1), self.student_text, self.teacher_text, valid.flatten()
        )


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
