"""A picture of which stuff is taken for which things, and the reverse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from densevlm_mm.vlm.checkpoints import save_atomically

from .canvas import display_name

_CELL = (0.46, 0.27)  # inches
_LABELS = (2.6, 2.1)  # inches left of the cells and above them
_PLURALS = {'thing': 'things', 'stuff': 'stuff'}


@dataclass(frozen=True)
class _Panel:
    """The part of the confusions that is shown: of the classes of one kind, taken for the other.

    Attributes:
        title: What is shown.
        rows: R true classes, the ones with the most regions taken for the other kind.
        columns: C classes that these are taken for most.
        shares: ``(R, 1 + C)``, percent of the regions of the row: taken for any class of the other kind, and for each
            of the columns.
    """

    title: str
    rows: np.ndarray
    columns: np.ndarray
    shares: np.ndarray


def plot_confusion(
    path: str | Path,
    counts: np.ndarray,
    regions: np.ndarray,
    names: Sequence[str],
    is_thing: Sequence[bool],
    *,
    max_rows: int = 20,
    max_columns: int = 16,
) -> None:
    """Write a picture with two panels: stuff taken for things, and things taken for stuff.

    Large vocabularies do not fit: the classes with the most confused regions are shown, and the titles say of how many.

    Args:
        path: ``.png`` to write.
        counts: ``(K, K)`` regions by true class (rows) and top-1 (columns).
        regions: ``(K,)`` regions of each true class.
        names: The K class names.
        is_thing: Their flags.
        max_rows: True classes per panel.
        max_columns: Classes per panel that they are taken for.
    """
    classes = {'thing': np.flatnonzero(is_thing), 'stuff': np.flatnonzero(np.logical_not(is_thing))}
    panels = [
        _select(counts, regions, {kind: classes[kind] for kind in kinds}, max_rows, max_columns)
        for kinds in (('stuff', 'thing'), ('thing', 'stuff'))
    ]
    heights = [_LABELS[1] + _CELL[1] * max(len(panel.rows), 1) for panel in panels]
    width = _LABELS[0] + _CELL[0] * max(panel.shares.shape[1] for panel in panels)
    figure = Figure(figsize=(max(width, 7.5), sum(heights)), layout='constrained')
    axes = figure.subplots(2, 1, height_ratios=heights)
    for axis, panel, other in zip(axes, panels, ('things', 'stuff'), strict=True):
        _draw(axis, panel, names, regions, f'all {other}')
    save_atomically(Path(path), lambda file: figure.savefig(file, format='png', dpi=110))


def _select(
    counts: np.ndarray, regions: np.ndarray, classes: dict[str, np.ndarray], max_rows: int, max_columns: int
) -> _Panel:
    """What to show of the first kind in ``classes`` taken for the second."""
    (kind, true), (other_kind, other) = classes.items()
    taken = counts[:, other].sum(1)
    rows = _largest(true, taken, max_rows)
    columns = _largest(other, counts[rows].sum(0), max_columns)
    shown = np.concatenate([taken[rows, None], counts[np.ix_(rows, columns)]], axis=1)
    title = (
        f'{_PLURALS[kind].capitalize()} taken for {_PLURALS[other_kind]}: {taken[true].sum()} of {regions[true].sum()} '
        f'regions. Cells: % of the regions of the class.\nThe {len(rows)} of {len(true)} {kind} classes with the most '
        f'such regions; the {len(columns)} of {len(other)} {other_kind} classes they are taken for most.'
    )
    return _Panel(title, rows, columns, 100 * shown / regions[rows, None])


def _largest(classes: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    """Those of the classes with the largest values above zero, largest first."""
    order = classes[np.argsort(-values[classes], kind='stable')]
    return order[values[order] > 0][:count]


def _draw(axis: Axes, panel: _Panel, names: Sequence[str], regions: np.ndarray, total: str) -> None:
    axis.set_title(panel.title, fontsize=9, loc='left')
    if not len(panel.rows):
        axis.text(0.5, 0.5, 'none', ha='center')
        axis.set(xticks=[], yticks=[])
        return
    # a few percent must be told from none
    axis.imshow(panel.shares, cmap='OrRd', norm=PowerNorm(0.5, 0, 100), aspect='auto', interpolation='nearest')
    axis.axvline(0.5, color='black', linewidth=1.5)
    axis.xaxis.tick_top()
    axis.tick_params(length=0)
    columns = [total, *(_short(names[i]) for i in panel.columns)]
    axis.set_xticks(range(len(columns)), columns, rotation=55, ha='left', rotation_mode='anchor', fontsize=8)
    rows = [f'{_short(names[i])} ({regions[i]})' for i in panel.rows]
    axis.set_yticks(range(len(rows)), rows, fontsize=8)
    for (row, column), share in np.ndenumerate(panel.shares):
        if share >= 0.5:
            color = 'white' if share > 45 else 'black'
            axis.text(column, row, f'{share:.0f}', ha='center', va='center', fontsize=7, color=color)


def _short(name: str, length: int = 22) -> str:
    """A name's first synonym, cut if it is long."""
    first = display_name(name)
    return first if len(first) <= length else first[: length - 1] + '…'
