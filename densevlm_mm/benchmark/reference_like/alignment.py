"""The alignment loss with shapes that depend on the data."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

_SCALE = 100.0


def alignment_loss(
    student: Tensor,
    teacher: Tensor,
    student_text: Tensor,
    teacher_text: Tensor,
    *,
    num_things: int,
    score_thr: float = 0.3,
) -> Tensor:
    """KL divergence of region classes, things among things and stuff among all classes.

    The teacher's logits are made three times: to choose regions, to tell things from stuff, to align. Each choice makes
    the host wait for the device.

    Args:
        student: ``(N, C_s)`` region features.
        teacher: ``(N, C_t)``, the same regions; no gradient goes there.
        student_text: ``(K, C_s)``, things first.
        teacher_text: ``(K, C_t)``.
        num_things: How many of the K classes are things.
        score_thr: Retrieval probability that a region must exceed.

    Returns:
        The sum of both terms; NaN if no region exceeds the threshold, as in the published code.
    """
    student, teacher = F.normalize(student, dim=-1), F.normalize(teacher, dim=-1)
    kept = _probabilities(teacher, teacher_text).max(-1).values > score_thr
    student, teacher = student[kept], teacher[kept]
    is_thing = _probabilities(teacher, teacher_text).argmax(-1) < num_things
    if not is_thing.any():
        return _kl(student, teacher, student_text, teacher_text)
    texts = student_text[:num_things], teacher_text[:num_things]
    loss = _kl(student[is_thing], teacher[is_thing], *texts)
    if (~is_thing).any():
        loss = loss + _kl(student[~is_thing], teacher[~is_thing], student_text, teacher_text)
    return loss


def _probabilities(features: Tensor, texts: Tensor) -> Tensor:
    return (_SCALE * features @ texts.T).softmax(-1)


def _kl(student: Tensor, teacher: Tensor, student_text: Tensor, teacher_text: Tensor) -> Tensor:
    prediction = (_SCALE * student @ student_text.T).log_softmax(-1)
    return F.kl_div(prediction, _probabilities(teacher, teacher_text), reduction='batchmean')
