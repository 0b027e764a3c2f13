"""What a run of segmentation benchmarks leaves behind: a table, and the same as JSON and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mmcv
import mmengine
import mmseg
import torch

from densevlm_mm import __version__
from densevlm_mm.evaluation.report import format_table, write_json
from densevlm_mm.seg.iou_metric import CONVENTIONS
from densevlm_mm.vlm.checkpoints import save_atomically

FIGURES = ('mIoU', 'mIoU_gt', 'mAcc', 'aAcc')
NAME = 'benchmark_seg'


def describe_run(facts: Mapping[str, Any], method: str, limit: int | None) -> dict[str, Any]:
    """What stands above the figures: model, method, versions and conventions.

    Args:
        facts: Those of a `Candidate`.
        method: Name of the protocols' method.
        limit: See `Options`.
    """
    versions = {
        'densevlm_mm': __version__,
        'torch': torch.__version__,
        'mmengine': mmengine.__version__,
        'mmcv': mmcv.__version__,
        'mmsegmentation': mmseg.__version__,
    }
    return {**facts, 'method': method, 'limit': limit, 'versions': versions, 'conventions': CONVENTIONS}


def as_text(run: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> str:
    """The table for people, figures in percent.

    Args:
        run: What `describe_run` gives.
        results: What `run_benchmark` gives, at least one. Those of a data set that is missing have ``missing`` and
            no ``metrics``.
    """
    rows = [[entry['benchmark'], entry.get('classes'), _images(entry), *_figures(entry)] for entry in results]
    finished = [entry['metrics'] for entry in results if 'metrics' in entry]
    if len(finished) > 1:
        rows.append([f'mean of {len(finished)}', None, '', *(_mean(finished, name) for name in FIGURES)])
    return '\n'.join([*_header(run), '', format_table(['benchmark', 'classes', 'images', *FIGURES], rows)])


def as_csv(run: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> str:
    """The table for programs: lines with ``#``, then columns; see `as_text`."""
    text = io.StringIO()
    text.writelines(f'# {line}\n' for line in _header(run))
    table = csv.writer(text, lineterminator='\n')
    table.writerow(['benchmark', 'title', 'classes', 'images', 'published_images', *FIGURES])
    facts = ('benchmark', 'title', 'classes', 'images', 'published_images')
    table.writerows([*(entry.get(key) for key in facts), *_figures(entry)] for entry in results)
    return text.getvalue()


def write_report(out: Path, run: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Write all three into a folder, each whole or not at all; see `as_text`.

    Returns:
        The files.
    """
    files = {'txt': f'{as_text(run, results)}\n', 'csv': as_csv(run, results)}
    paths = [out / f'{NAME}.{suffix}' for suffix in ('json', *files)]
    write_json(paths[0], {'run': run, 'results': list(results)})
    for path, text in zip(paths[1:], files.values(), strict=True):
        save_atomically(path, lambda file, text=text: file.write(text.encode()))
    return paths


def _header(run: Mapping[str, Any]) -> list[str]:
    plain = {key: value for key, value in run.items() if isinstance(value, str | int)}
    lines = [f'{key}: {value}' for key, value in plain.items()]
    lines.append('versions: ' + ', '.join(f'{name} {value}' for name, value in run['versions'].items()))
    return [*lines, *(f'{name}: {text}' for name, text in run['conventions'].items())]


def _images(entry: Mapping[str, Any]) -> str:
    if 'metrics' not in entry:
        return 'missing'
    found, published = entry['images'], entry['published_images']
    return str(found) if found == published else f'{found} of {published}'


def _figures(entry: Mapping[str, Any]) -> list[float | None]:
    return [entry.get('metrics', {}).get(name) for name in FIGURES]


def _mean(metrics: Sequence[Mapping[str, float]], name: str) -> float | None:
    values = [of_one[name] for of_one in metrics if name in of_one]
    return sum(values) / len(values) if values else None
