"""From scores of queries, the phrases that stand for the classes, to one label per pixel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from densevlm_mm.visualization import class_colors
from densevlm_mm.vlm import Vocabulary
from densevlm_mm.vlm.vocabulary import BACKGROUND

_SCORES_AT_ONCE = 2**22  # 16 MiB of fp32, about what a cache holds: all scores of an image may be gigabytes
_SMALLEST_TILE = 16  # px


@dataclass(frozen=True, kw_only=True)
class LabelRule:
    """Which class a pixel gets.

    The class of the best query, so that a class scores as its best synonym does; background where even that one is
    poor. MMSegmentation's own post-processing cuts the sigmoid of a single class at 0.3; here one class is everywhere.

    Args:
        classes: Per query the class that it stands for, each of 0..K-1 at least once; see `Vocabulary.expanded`.
        background: Index of the class for pixels without another, or None if there is none.
        threshold: Score below which a pixel is background; 0 for none.
        area_thd: Share of all pixels that are not background, by their best query alone. A class that covers less is
            taken out, and its pixels go to the best of the rest; 0 for none.

    Raises:
        ValueError: If a threshold is outside [0, 1), or set without a background.
    """

    classes: tuple[int, ...]
    background: int | None = None
    threshold: float = 0.0
    area_thd: float = 0.0

    def __post_init__(self) -> None:
        for name in ('threshold', 'area_thd'):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ValueError(f'{name} must be in [0, 1), got {value}')
            if value and self.background is None:
                raise ValueError(
                    f'{name}={value} leaves pixels without a class, and the vocabulary has none named {BACKGROUND!r} '
                    f'for them: add it, or set {name}=0'
                )

    @classmethod
    def of(cls, vocabulary: Vocabulary, *, threshold: float = 0.0, area_thd: float = 0.0) -> LabelRule:
        """The rule for a vocabulary's own queries; its background is the class of that name.

        Raises:
            ValueError: See the class; or if the vocabulary's background is a matter of threshold, and there is none.
        """
        if vocabulary.background == 'threshold' and not threshold:
            raise ValueError(
                "the vocabulary's background is wherever no other class is probable: set the threshold for that, or "
                'give its background words, or None for a class like the others'
            )
        background = vocabulary.names.index(BACKGROUND) if BACKGROUND in vocabulary.names else None
        classes = vocabulary.expanded()[1]
        return cls(classes=classes, background=background, threshold=threshold, area_thd=area_thd)

    def labels(self, scores: Tensor, kept: Tensor | None = None) -> Tensor:
        """Class indices ``(...)``, int64.

        Args:
            scores: ``(P, ...)``, not negative.
            kept: ``(K,)`` bool, the classes that remain; None for all of them.
        """
        classes = torch.tensor(self.classes, device=scores.device)
        if kept is not None:
            scores = scores * kept[classes].view(-1, *[1] * (scores.ndim - 1))
        best, query = scores.max(0)
        labels = classes[query]
        return labels.masked_fill(best < self.threshold, self.background) if self.threshold else labels

    def kept_classes(self, labels: Tensor) -> Tensor:
        """Which classes cover enough of a label map ``(H, W)``: ``(K,)`` bool, background always."""
        areas = labels.flatten().bincount(minlength=max(self.classes) + 1)
        areas[self.background] = 0
        kept = areas >= self.area_thd * areas.sum()
        kept[self.background] = True
        return kept


@torch.no_grad()
def label_map(
    maps: Tensor, rule: LabelRule, *, rows: Tensor, columns: Tensor, score: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Labels of an image, made tile by tile: the scores of all queries at all pixels never exist at once.

    Args:
        maps: ``(P, m, n)``, a map per query, fp32.
        rule: How scores become labels.
        rows: ``(H, m)``, weights that make the rows of the image from those of the maps, such as `resize_weights` or
            `window_weights`.
        columns: ``(W, n)``, the same for columns.
        score: From the resized maps of a tile, ``(P, h, w)``, to scores. None: they are scores already.

    Returns:
        ``(H, W)`` class indices, int64.
    """
    rows, columns = rows.to(maps), columns.to(maps)

    def paint(rule: LabelRule, kept: Tensor | None = None) -> Tensor:
        labels = torch.empty(len(rows), len(columns), dtype=torch.long, device=maps.device)
        for tile in _tiles(labels.shape, len(maps)):
            values = resized_maps(maps, rows[tile[0]], columns[tile[1]])
            labels[tile] = rule.labels(values if score is None else score(values), kept)
        return labels

    return paint(rule, rule.kept_classes(paint(replace(rule, threshold=0.0))) if rule.area_thd else None)


def resized_maps(maps: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Maps ``(P, h, w)``, fp32 also under autocast, or a tile of them: the rows and columns whose weights are given.

    Few cells have a weight in a tile; the products leave out the others.

    Args:
        maps: ``(P, m, n)``.
        rows: ``(h, m)``, see `label_map`.
        columns: ``(w, n)``.
    """
    used_rows, used_columns = (weights.any(0).nonzero().flatten() for weights in (rows, columns))
    cells = maps[:, used_rows[:, None], used_columns]
    with torch.autocast(maps.device.type, enabled=False):  # in half precision, classes of a large vocabulary would tie
        return rows[:, used_rows] @ cells @ columns[:, used_columns].T


def vocabulary_meta(vocabulary: Vocabulary) -> dict[str, Any]:
    """What MMSegmentation's visualizers and inferencers name and paint labels by: ``classes`` and ``palette``."""
    palette = (255 * class_colors(vocabulary.is_thing)).round().astype(int).tolist()
    return {'classes': vocabulary.names, 'palette': palette}


def _tiles(size: tuple[int, int], queries: int) -> Iterator[tuple[slice, slice]]:
    side = max(_SMALLEST_TILE, isqrt(_SCORES_AT_ONCE // queries))
    for top in range(0, size[0], side):
        for left in range(0, size[1], side):
            yield slice(top, top + side), slice(left, left + side)
