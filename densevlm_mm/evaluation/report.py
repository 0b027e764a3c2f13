"""What an evaluation leaves behind: tables in the log and a JSON file."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from mmengine.logging import MMLogger

# Names of the groups in Table 1 of the DenseVLM paper, which leaves out the boxes of stuff and all crops.
GROUPS = {
    'Boxes': ('boxes', 'thing'),
    'Masks-T': ('masks', 'thing'),
    'Masks-S': ('masks', 'stuff'),
    'Boxes-S': ('boxes', 'stuff'),
    'Crops-T': ('crops', 'thing'),
    'Crops-S': ('crops', 'stuff'),
}
BIASES = {
    'bias: stuff taken for things': ('bias', 'stuff'),
    'reverse bias: things taken for stuff': ('reverse_bias', 'thing'),
}


def group_table(
    metrics: dict[str, float], groups: dict[str, dict[str, int]], topk: Sequence[int], sources: Sequence[str]
) -> str:
    """Table of the groups, with a dash for figures of a group without regions.

    Args:
        metrics: Figures of :class:`RegionAccuracy` without a prefix.
        groups: For 'thing' and 'stuff', the number of ``classes`` and of ``regions``.
        topk: Which top-k accuracies.
        sources: What was evaluated, of 'boxes', 'masks' and 'crops'.
    """
    rows = [
        [name, *(metrics.get(f'{source}.{kind}.macc{k}') for k in topk), *groups[kind].values()]
        for name, (source, kind) in GROUPS.items()
        if source in sources
    ]
    blanks = [None] * (len(topk) - 1)
    for name, (key, kind) in BIASES.items():
        rows.append([name, metrics.get(key), *blanks, *groups[kind].values()])
    return format_table(['group', *(f'Top-{k}' for k in topk), 'classes', 'regions'], rows)


def class_table(entries: Sequence[dict], topk: Sequence[int], sources: Sequence[str]) -> str:
    """Table of the classes, from the ``per_class`` entries of :class:`RegionAccuracy`; the rest as in `group_table`."""
    columns = {f'{source.title()} Top-{k}': f'{source}.acc{k}' for source in sources for k in topk}
    rows = [
        [
            entry['name'],
            'thing' if entry['is_thing'] else 'stuff',
            *(entry[key] for key in columns.values()),
            entry['regions'],
        ]
        for entry in entries
    ]
    return format_table(['class', 'kind', *columns, 'regions'], rows)


def format_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Lay out a table: texts to the left, numbers to the right, a rule below the header.

    Args:
        header: Title of each column.
        rows: As many cells each, at least one row; a column of texts has a text in its first row.
    """
    lines = [list(header), *([_format_cell(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    formats = [f'{"<" if isinstance(cell, str) else ">"}{width}' for cell, width in zip(rows[0], widths, strict=True)]
    text = ['  '.join(map(format, line, formats)).rstrip() for line in lines]
    return '\n'.join([text[0], '-' * max(map(len, text)), *text[1:]])


def _format_cell(value: object) -> str:
    if value is None:
        return '-'
    return f'{value:.2f}' if isinstance(value, float) else str(value)


def output_path(chosen: str | None, name: str) -> Path | None:
    """Where a file of figures goes: where it was asked to; else beside the log file of the run; else nowhere."""
    if chosen is not None:
        return Path(chosen)
    log_file = MMLogger.get_current_instance().log_file
    return Path(log_file).with_name(name) if log_file else None


def write_json(path: Path, content: dict) -> None:
    """Write a JSON file beside the one it replaces, then rename it, so that no reader sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f'{path.name}.{os.getpid()}.tmp')
    try:
        unfinished.write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
