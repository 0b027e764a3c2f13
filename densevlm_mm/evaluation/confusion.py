"""Which classes are taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from densevlm_mm.vlm.checkpoints import save_atomically


@dataclass(frozen=True)
class Confusion:
    """How often the regions of each class are taken for each class.

    Attributes:
        counts: ``(K, K)`` int64, rows are true classes, columns top-1.
        regions: ``(K,)`` int64, regions of each true class. A row of ``counts`` may sum to less: ties are no answer.
        names: The K class names.
        is_thing: Their flags.
    """

    counts: np.ndarray
    regions: np.ndarray
    names: tuple[str, ...]
    is_thing: tuple[bool, ...]

    @classmethod
    def of(cls, labels: np.ndarray, top1: np.ndarray, names: Sequence[str], is_thing: Sequence[bool]) -> Confusion:
        """Counts of regions with labels ``(N,)`` in 0..K-1 that are taken for ``top1`` ``(N,)``, -1 for a tie."""
        size, decided = len(names), top1 >= 0
        pairs = labels[decided] * size + top1[decided]
        return cls(
            counts=np.bincount(pairs, minlength=size**2).reshape(size, size),
            regions=np.bincount(labels, minlength=size),
            names=tuple(names),
            is_thing=tuple(map(bool, is_thing)),
        )

    def save(self, path: Path) -> None:
        """Write the four attributes as the arrays of an ``.npz`` file, whole or not at all."""
        save_atomically(path, lambda file: np.savez_compressed(file, **vars(self)))
