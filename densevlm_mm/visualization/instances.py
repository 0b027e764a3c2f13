"""Boxes with a class and a score, as they are drawn: checked, enlarged, and with a place for each name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from mmengine.visualization.utils import tensor2ndarray

from densevlm_mm.vlm import Vocabulary

_Place = tuple[float, float, float, float]


@dataclass(frozen=True)
class Instances:
    """N boxes in a picture.

    Attributes:
        boxes: ``(N, 4)`` xyxy in px.
        labels: ``(N,)`` class indices.
        scores: ``(N,)``.
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, chosen: np.ndarray) -> Instances:
        return Instances(self.boxes[chosen], self.labels[chosen], self.scores[chosen])


def read_instances(
    boxes: Any, labels: Any, scores: Any, vocabulary: Vocabulary, picture: np.ndarray, factor: int
) -> Instances:
    """Boxes of an image in the picture that it became.

    Args:
        boxes: ``(N, 4)`` xyxy in px of the image.
        labels: ``(N,)`` class indices.
        scores: ``(N,)``.
        vocabulary: What the labels count.
        picture: ``(H, W, 3)``, the enlarged image.
        factor: By which it was enlarged.

    Raises:
        ValueError: Numbers or shapes do not fit each other, a label is no class, or a box has no order of its corners.
    """
    boxes, scores = (np.asarray(tensor2ndarray(values), dtype=float) for values in (boxes, scores))
    labels = check_labels(labels, vocabulary, lowest=0)
    boxes = boxes.reshape(-1, 4) if boxes.size == 0 else boxes
    if boxes.shape != (len(labels), 4) or labels.ndim != 1 or scores.shape != labels.shape:
        raise ValueError(
            f'boxes (N, 4), labels (N,) and scores (N,) are needed, got {boxes.shape}, {labels.shape}, {scores.shape}'
        )
    if not (boxes[:, :2] <= boxes[:, 2:]).all():
        raise ValueError('boxes are xyxy, left <= right and top <= bottom; convert those in another format')
    height, width = picture.shape[:2]
    boxes = np.clip(boxes * factor, 0, [width - 1, height - 1, width, height])
    return Instances(boxes, labels, scores)


def check_labels(labels: Any, vocabulary: Vocabulary, lowest: int | None = None) -> np.ndarray:
    """Class indices as an array.

    Args:
        labels: What to check.
        vocabulary: What they count.
        lowest: Smallest label that is allowed, and then the vocabulary's last class is the largest; None for any.

    Raises:
        ValueError: They are no integers, or one is out of range.
    """
    labels = np.asarray(tensor2ndarray(labels))
    if labels.size and not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f'labels are class indices, integers, got {labels.dtype}')
    if lowest is not None and labels.size and not (lowest <= labels.min() and labels.max() < len(vocabulary)):
        raise ValueError(
            f'labels run from {labels.min()} to {labels.max()}, but the vocabulary has {len(vocabulary)} classes: '
            'give the vocabulary that they were predicted with'
        )
    return labels.astype(int)


class Places:
    """Where names go in a picture: inside of it, and if possible not over each other.

    Args:
        picture: ``(H, W, 3)``.
    """

    def __init__(self, picture: np.ndarray) -> None:
        self.height, self.width = picture.shape[:2]
        self.taken = np.zeros((0, 4))

    def take(self, box: np.ndarray, size: tuple[float, float], pad: float) -> tuple[float, float]:
        """Left and top, in px, for the name of a box; the first of its corners where it hides least of other names.

        Args:
            box: ``(4,)`` xyxy in px.
            size: Width and height of the name in px.
            pad: Around it, in px.
        """
        width, height = size[0] + 2 * pad, size[1] + 2 * pad
        left, top, right, bottom = box
        corners = [(left, top - height), (left, top), (left, bottom), (left, bottom - height)]
        corners += [(right - width, top - height), (right - width, top), (right - width, bottom)]
        places = [self._inside(*corner, width, height) for corner in corners]
        best = min(places, key=self._hidden)  # min keeps the first of equal ones
        self.taken = np.concatenate([self.taken, [best]])
        return best[0] + pad, best[1] + pad

    def _inside(self, left: float, top: float, width: float, height: float) -> _Place:
        left = min(max(left, 0.0), max(self.width - width, 0.0))
        top = min(max(top, 0.0), max(self.height - height, 0.0))
        return left, top, left + width, top + height

    def _hidden(self, place: _Place) -> float:
        """Area in px of other names that a name there would hide."""
        sides = np.minimum(self.taken[:, 2:], place[2:]) - np.maximum(self.taken[:, :2], place[:2])
        return float(sides.clip(0).prod(1).sum())
