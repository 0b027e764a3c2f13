"""What all distillers share: a student that trains in part, and a teacher that stays out of the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from densevlm_mm.models.preprocessor import send
from densevlm_mm.models.region_classifier import RegionModel
from densevlm_mm.vlm import VLM, load_vlm
from densevlm_mm.vlm.region_pooling import pad_regions, pool_boxes

from .teachers import compile_tower


class RegionDistiller(RegionModel):
    """A student whose last image blocks learn; everything else of it is frozen.

    Frozen are the patch embedding, class token, positions, final norm, projection, logit scale and the whole text
    tower, and of the last block what its dense mode leaves unused.

    Args:
        student: Arguments of `load_vlm`, and ``trainable_blocks``: how many of the last image blocks train. With
            ``grad_checkpointing=True`` its blocks keep next to nothing for the backward pass; with ``compile=True`` (or
            a mapping of `torch.compile`'s options) they are compiled.
        eval_vocabulary: See `RegionModel`.
        eval_templates: See `RegionModel`.
        data_preprocessor: See `RegionModel`.
    """

    def __init__(
        self,
        *,
        student: Mapping[str, Any],
        eval_vocabulary: Any = None,
        eval_templates: str | Sequence[str] = 'vild',
        data_preprocessor: Mapping | None = None,
    ) -> None:
        student = dict(student)
        if 'trainable_blocks' not in student:
            raise ValueError('student.trainable_blocks is missing: say how many of its last image blocks train')
        trainable_blocks = student.pop('trainable_blocks')
        grad_checkpointing, compiled = student.pop('grad_checkpointing', False), student.pop('compile', False)
        super().__init__(
            load_vlm(**student).requires_grad_(False),
            eval_vocabulary=eval_vocabulary,
            eval_templates=eval_templates,
            data_preprocessor=data_preprocessor,
        )
        self.adopt_mode = student.get('dense_mode') is None
        self.student.visual.set_trainable(trainable_blocks, self.student.dense_mode)
        self.student.visual.grad_checkpointing = grad_checkpointing
        compile_tower(self.student.visual, compiled)
        self.__dict__['teacher'] = None

    @property
    def student(self) -> VLM:
        """The model that learns."""
        return self.vlm

    def hold_teacher(self, teacher: nn.Module) -> None:
        """Keep a frozen module that follows this model's device but is none of its children.

        It comes from a file of its own, so checkpoints, optimiser and DDP need not know about it.
        """
        self.__dict__['teacher'] = teacher.requires_grad_(False).eval()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RegionDistiller:
        if self.teacher is not None:
            self.teacher._apply(fn)
        return super()._apply(fn, recurse)

    def student_regions(self, inputs: Tensor, boxes: Tensor) -> Tensor:
        """Student box features ``(B, N, C)`` with gradient, of images (B, 3, H, W) and boxes (B, N, 4)."""
        return pool_boxes(self.student.encode_dense(inputs), boxes)


def batch_boxes(data_samples: list[BaseDataElement], device: torch.device) -> tuple[Tensor, Tensor]:
    """Boxes ``(B, N, 4)`` of a batch, zero-padded, and flags ``(B, N)`` of the real ones."""
    boxes, valid = pad_regions([sample.gt_regions.boxes for sample in data_samples])
    return send(boxes, device), send(valid, device)
