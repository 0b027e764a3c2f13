"""DenseVLM's loss: region retrieval by the teacher, denoising, and decoupled alignment of things and stuff."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densevlm_mm.registry import MODELS

from .global_mean import mean_divisors


@MODELS.register_module()
class DecoupledAlignmentLoss(nn.Module):
    """KL divergence between the class distributions that teacher and student see in a region, by kind of region.

    The teacher retrieves the most probable class of each region. Regions below `score_thr` are dropped. Regions of
    thing classes are aligned over the thing classes only, so that they exert no pull against stuff; the others over all
    classes. Each group is averaged over its own rows (DenseVLM, arXiv:2412.06244, section 3).

    All shapes are fixed and nothing waits for the device. In distributed training the means run over the rows of all
    processes, so that the averaged gradient is that of one process with the whole batch.

    Args:
        num_things: Number of leading thing classes. The released training code passes 203 for its list of 204 things
            and 112 stuff classes.
        score_thr: Retrieval probability that a region must exceed, in 0..1.
        logit_scale: Factor on the cosines of both models.
        stuff_classes: Classes over which stuff regions are aligned: 'all', as released, or 'stuff' (block-diagonal).
        thing_classes: The same for things: 'thing', or 'all' to couple them again (ablation).
        mean: 'per_group', or 'joint' to divide both sums by the rows of both groups (ablation).
        thing_weight: Factor on the thing term.
        stuff_weight: Factor on the stuff term.

    Raises:
        ValueError: For an option outside these, or a threshold that no probability can exceed.
    """

    def __init__(
        self,
        num_things: int,
        score_thr: float = 0.3,
        logit_scale: float = 100.0,
        stuff_classes: Literal['all', 'stuff'] = 'all',
        *,
        thing_classes: Literal['thing', 'all'] = 'thing',
        mean: Literal['per_group', 'joint'] = 'per_group',
        thing_weight: float = 1.0,
        stuff_weight: float = 1.0,
    ) -> None:
        super().__init__()
        for name, value, known in (
            ('stuff_classes', stuff_classes, ('all', 'stuff')),
            ('thing_classes', thing_classes, ('thing', 'all')),
            ('mean', mean, ('per_group', 'joint')),
        ):
            if value not in known:
                raise ValueError(f'{name} must be one of {known}, got {value!r}')
        if num_things < 1:
            raise ValueError(f'num_things must be at least 1, got {num_things}')
        self.num_things = num_things
        self.score_thr = score_thr
        self.logit_scale = logit_scale
        self.stuff_classes = stuff_classes
        self.thing_classes = thing_classes
        self.mean = mean
        self.thing_weight = thing_weight
        self.stuff_weight = stuff_weight

    @property
    def score_thr(self) -> float:
        """Retrieval probability that a region must exceed."""
        return self._score_thr

    @score_thr.setter
    def score_thr(self, value: float) -> None:
        if not 0 <= value < 1:
            raise ValueError(f'score_thr must be in [0, 1), got {value}: no probability exceeds 1, so nothing is kept')
        self._score_thr = value

    def forward(
        self,
        student_features: Tensor,
        teacher_features: Tensor,
        student_text: Tensor,
        teacher_text: Tensor,
        valid: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Loss of a batch of regions.

        Args:
            student_features: ``(N, C_s)`` region features before their L2 norm.
            teacher_features: ``(N, C_t)``, the same regions; no gradient goes there.
            student_text: ``(K, C_s)`` class embeddings, things first, used as given.
            teacher_text: ``(K, C_t)``, the same classes.
            valid: ``(N,)`` flags of the rows that are regions; None means all.

        Returns:
            ``loss_thing`` and ``loss_stuff``, each 0 with a gradient path when it has no row; for the log
            ``num_regions``, ``num_kept``, ``num_thing`` (rows of this process) and ``confidence`` (mean retrieval
            probability of all regions).

        Raises:
            ValueError: If shapes do not fit each other.
        """
        self._check_shapes(student_features, teacher_features, student_text, teacher_text)
        with torch.autocast(student_features.device.type, enabled=False):
            with torch.no_grad():
                teacher_logits = self._logits(teacher_features, teacher_text)
                confidence, label = teacher_logits.softmax(-1).max(-1)
                valid = torch.ones_like(label, dtype=torch.bool) if valid is None else valid
                kept = valid & (confidence > self.score_thr)
                is_thing = label < self.num_things
            student_logits = self._logits(student_features, student_text)
            things = slice(0, self.num_things if self.thing_classes == 'thing' else None)
            stuff = slice(self.num_things if self.stuff_classes == 'stuff' else 0, None)
            thing_rows, stuff_rows = kept & is_thing, kept & ~is_thing
            thing_count, stuff_count = self._row_counts(thing_rows, stuff_rows)
            loss_thing = _kl(teacher_logits[:, things], student_logits[:, things], thing_rows) / thing_count
            loss_stuff = _kl(teacher_logits[:, stuff], student_logits[:, stuff], stuff_rows) / stuff_count
        return dict(
            loss_thing=self.thing_weight * loss_thing,
            loss_stuff=self.stuff_weight * loss_stuff,
            num_regions=valid.sum().float(),
            num_kept=kept.sum().float(),
            num_thing=thing_rows.sum().float(),
            confidence=(confidence * valid).sum() / valid.sum().clamp(min=1),
        )

    def _logits(self, features: Tensor, texts: Tensor) -> Tensor:
        return self.logit_scale * F.normalize(features.float(), dim=-1) @ texts.float().T

    def _row_counts(self, thing_rows: Tensor, stuff_rows: Tensor) -> tuple[Tensor, Tensor]:
        """Divisors of the two sums, see `mean_divisors`."""
        counts = torch.stack([thing_rows.sum(), stuff_rows.sum()])
        thing, stuff = mean_divisors(counts.sum().expand(2) if self.mean == 'joint' else counts).unbind()
        return thing, stuff

    def _check_shapes(self, student: Tensor, teacher: Tensor, student_text: Tensor, teacher_text: Tensor) -> None:
        for who, features, texts in (('student', student, student_text), ('teacher', teacher, teacher_text)):
            if features.shape[-1] != texts.shape[-1]:
                raise ValueError(
                    f'{who} features are {features.shape[-1]} wide but its class embeddings {texts.shape[-1]}: '
                    'the embeddings were made with another text tower'
                )
        if len(student) != len(teacher) or len(student_text) != len(teacher_text):
            raise ValueError(
                f'{len(student)} student and {len(teacher)} teacher regions, {len(student_text)} student and '
                f'{len(teacher_text)} teacher classes: both sides must list the same ones'
            )
        if self.num_things >= len(student_text):
            raise ValueError(
                f'num_things is {self.num_things}, but of {len(student_text)} classes none is left for stuff'
            )


def _kl(teacher_logits: Tensor, student_logits: Tensor, rows: Tensor) -> Tensor:
    """Sum over the given rows of KL(teacher || student)."""
    target, prediction = teacher_logits.log_softmax(-1), student_logits.log_softmax(-1)
    per_row = F.kl_div(prediction, target, reduction='none', log_target=True).sum(-1)
    return (per_row * rows).sum()
