"""Accuracy of region classification, averaged over classes, and the bias between things and stuff."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

THING, STUFF, UNKNOWN = 1, 0, -1


@dataclass(frozen=True)
class RegionScores:
    """What the metrics need to know of the logits of N regions.

    A tie is no answer: an undecided model gets no credit for it, whatever the order of the classes. Regions
    that are too thin for a single token have all-zero features, and with them K equal logits.

    Attributes:
        ranks: ``(N,)`` int64, how many *other* classes score at least as high as the label. Top-k is right if
            less than k.
        top1: ``(N,)`` int64, the class that scores highest; -1 where several do.
    """

    ranks: np.ndarray
    top1: np.ndarray

    @classmethod
    def from_logits(cls, logits: np.ndarray, labels: np.ndarray) -> RegionScores:
        """Scores of logits ``(N, K)`` with labels ``(N,)``."""
        if not len(labels):
            return cls(ranks=np.zeros(0, np.int64), top1=np.zeros(0, np.int64))
        best = logits.max(axis=1, keepdims=True)
        decided = (logits == best).sum(axis=1) == 1
        return cls(
            ranks=(logits >= np.take_along_axis(logits, labels[:, None], axis=1)).sum(axis=1) - 1,
            top1=np.where(decided, logits.argmax(axis=1), -1),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[RegionScores]) -> RegionScores:
        """Scores of all regions of the parts, in their order."""
        return cls(
            ranks=np.concatenate([part.ranks for part in parts]),
            top1=np.concatenate([part.top1 for part in parts]),
        )


def check_regions(logits: Any, labels: Any, is_thing: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Convert one set of predictions and ground truth to NumPy.

    Args:
        logits: ``(N, K)``, tensor or array of any floating type.
        labels: ``(N,)`` integers in 0..K-1.
        is_thing: ``(N,)``, bool or 0/1.

    Returns:
        The same as float64, int64 and bool.

    Raises:
        ValueError: Shapes disagree, a logit is NaN, or a label is no integer or out of range.
    """
    logits, labels, is_thing = (torch.as_tensor(value).detach().cpu() for value in (logits, labels, is_thing))
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or is_thing.shape != labels.shape:
        raise ValueError(
            'logits (N, K), labels (N,) and is_thing (N,) are expected, got '
            f'{tuple(logits.shape)}, {tuple(labels.shape)} and {tuple(is_thing.shape)}'
        )
    if len(labels) and labels.is_floating_point():
        raise ValueError(f'labels must be integers, got {labels.dtype}')
    if outside := labels[(labels < 0) | (labels >= logits.shape[1])].unique().tolist():
        raise ValueError(f'labels {outside[:5]} are out of range for logits of {logits.shape[1]} classes')
    if torch.isnan(logits).any():
        rows = torch.isnan(logits).any(dim=1).sum()
        raise ValueError(f'logits of {rows} of {len(logits)} regions are NaN; is the checkpoint broken?')
    return logits.double().numpy(), labels.long().numpy(), is_thing.bool().numpy()


def class_kinds(
    labels: np.ndarray, is_thing: np.ndarray, num_classes: int, class_is_thing: Sequence[bool] | None = None
) -> np.ndarray:
    """Which classes are things.

    Args:
        labels: ``(N,)`` labels of the regions.
        is_thing: ``(N,)`` bool.
        num_classes: K.
        class_is_thing: ``(K,)`` flags. ``None`` takes them from the regions, which say nothing of other
            classes.

    Returns:
        ``(K,)`` of ``THING``, ``STUFF`` or ``UNKNOWN``.

    Raises:
        ValueError: A class has regions of both kinds, or of another than ``class_is_thing`` says.
    """
    kinds = np.full(num_classes, UNKNOWN)
    kinds[labels] = is_thing
    if class_is_thing is not None:
        kinds = np.asarray(class_is_thing).astype(bool).astype(kinds.dtype)
        if kinds.shape != (num_classes,):
            raise ValueError(f'class_is_thing has shape {kinds.shape}, but there are {num_classes} classes')
    if contradicted := np.unique(labels[kinds[labels] != is_thing]).tolist():
        raise ValueError(
            f'classes {contradicted[:5]} have both thing and stuff regions; is_thing must be a property of the class'
        )
    return kinds


def class_mean(correct: np.ndarray, labels: np.ndarray) -> float:
    """Mean over the classes present of the share of their regions that is correct.

    Args:
        correct: ``(N,)`` bool, N > 0.
        labels: ``(N,)`` int64.
    """
    counts = np.bincount(labels)
    hits = np.bincount(labels, weights=correct)
    return float((hits[counts > 0] / counts[counts > 0]).mean())


def group_accuracy(
    scores: RegionScores, labels: np.ndarray, is_thing: np.ndarray, topk: Sequence[int]
) -> dict[str, float]:
    """``{'thing.macc1': ...}`` in 0..1 for the groups that have regions."""
    return {
        f'{group}.macc{k}': class_mean(scores.ranks[members] < k, labels[members])
        for group, members in (('thing', is_thing), ('stuff', ~is_thing))
        if members.any()
        for k in topk
    }


def thing_stuff_bias(scores: RegionScores, is_thing: np.ndarray, kinds: np.ndarray) -> dict[str, float]:
    """Shares in 0..1 of regions that are taken for the other kind.

    Args:
        scores: Scores of N regions.
        is_thing: ``(N,)`` bool.
        kinds: ``(K,)`` from :func:`class_kinds`.

    Returns:
        ``bias``, the share of stuff regions whose top-1 is a thing class, if there are any; ``reverse_bias``,
        its mirror.
    """
    # The entry that is appended is the one that -1, no answer, picks.
    taken_for = np.append(kinds, UNKNOWN)[scores.top1]
    shares = {}
    if not is_thing.all():
        shares['bias'] = float((taken_for[~is_thing] == THING).mean())
    if is_thing.any():
        shares['reverse_bias'] = float((taken_for[is_thing] == STUFF).mean())
    return shares


def check_topk(topk: Sequence[int]) -> tuple[int, ...]:
    """``topk`` as a tuple.

    Raises:
        ValueError: It is empty or holds a number below 1.
    """
    if not topk or any(k < 1 for k in topk):
        raise ValueError(f'topk must be numbers of at least 1, got {tuple(topk)}')
    return tuple(topk)


def region_accuracy(
    logits: Any,
    labels: Any,
    is_thing: Any,
    topk: Sequence[int] = (1, 5),
    *,
    class_is_thing: Sequence[bool] | None = None,
) -> dict[str, float]:
    """Class-wise mean accuracy of region classification (mAcc) for things and stuff, and their confusion.

    The protocol of CLIPSelf and DenseVLM: accuracy per class, then the unweighted mean over the classes that
    occur, separately for things and stuff; every region chooses among all K classes.

    Args:
        logits: ``(N, K)`` similarity of each region to each class.
        labels: ``(N,)`` integers in 0..K-1.
        is_thing: ``(N,)``, bool or 0/1.
        topk: Which top-k accuracies. A label tied with other classes counts as ranked behind all of them.
            With ``k >= K`` everything is right, as in toy vocabularies of three classes.
        class_is_thing: ``(K,)`` flags, for exact bias figures. Without, a class is what its regions are, and
            one without regions counts as neither.

    Returns:
        Shares in 0..1: ``thing.macc{k}``, ``stuff.macc{k}``, ``bias`` (stuff regions whose top-1 is a thing
        class, of all stuff regions) and ``reverse_bias`` (its mirror). A group without regions has no keys.

    Raises:
        ValueError: There is no region, shapes disagree, a logit is NaN, a label is out of range, or a class
            has regions of both kinds.
    """
    topk = check_topk(topk)
    logits, labels, is_thing = check_regions(logits, labels, is_thing)
    if not len(labels):
        raise ValueError('there is no region to evaluate')
    kinds = class_kinds(labels, is_thing, logits.shape[1], class_is_thing)
    scores = RegionScores.from_logits(logits, labels)
    return group_accuracy(scores, labels, is_thing, topk) | thing_stuff_bias(scores, is_thing, kinds)
