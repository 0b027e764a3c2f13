"""Tables and files of what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

from densevlm_mm.evaluation.report import format_table

from .machine import describe_machine
from .options import Options
from .timing import TOTAL


def as_document(benchmark: str, command: str, options: Options, results: Mapping[str, Any]) -> dict[str, Any]:
    """All that is worth keeping of a run, for a JSON file.

    Args:
        benchmark: Its name.
        command: The command line that repeats it.
        options: What was asked for.
        results: What came out.
    """
    return {
        'benchmark': benchmark,
        'command': command,
        'date': datetime.now(timezone.utc).isoformat(timespec='seconds'),
        'machine': describe_machine(options.device),
        'options': asdict(options),
        **results,
    }


def as_text(document: Mapping[str, Any]) -> str:
    """A document of `as_document` for people: times in ms as median (least to greatest)."""
    parts = [', '.join(f'{key} {value}' for key, value in document['machine'].items())]
    parts += [_table_of(measurement) for measurement in document['measurements']]
    if 'seconds_to_build' in document['measurements'][0]:
        seconds = document['measurements'][0]['seconds_to_build']
        parts.append(format_table(['data set', 'built in s'], [[name, value] for name, value in seconds.items()]))
    parts += [format_section(document[key]) for key, format_section in _SECTIONS.items() if key in document]
    return '\n\n'.join(parts)


def _table_of(measurement: Mapping[str, Any]) -> str:
    candidates = measurement['candidates']
    stages = dict.fromkeys(stage for candidate in candidates.values() for stage in candidate['seconds'])
    ordered = [*(stage for stage in stages if stage != TOTAL), TOTAL]
    seconds = [candidate['seconds'] for candidate in candidates.values()]
    rows = [[f'{stage}, ms', *(_milliseconds(of.get(stage)) for of in seconds)] for stage in ordered]
    rows.append(['images per second', *(f'{c["images_per_second"]:.2f}' for c in candidates.values())])
    if all('utilisation' in candidate for candidate in candidates.values()):
        rows.append(['share of matrix rate, %', *(f'{100 * c["utilisation"]:.1f}' for c in candidates.values())])
    if all('peak_memory' in candidate for candidate in candidates.values()):
        rows.append(['peak of memory, MB', *(f'{c["peak_memory"] / 1e6:.0f}' for c in candidates.values())])
    first, *others = candidates
    ratios = [measurement['ratios'][name] for name in others]
    if others:
        rows.append(
            [f'time / that of {first}', '1', *(f'{r["median"]:.2f} ({r["min"]:.2f} to {r["max"]:.2f})' for r in ratios)]
        )
        rows.append(['fastest / fastest', '1', *(f'{r["fastest"]:.2f}' for r in ratios)])
    title = f'{measurement["setting"]}; {measurement["images"]} images in each run'
    return f'{title}\n{format_table(["", *candidates], rows)}'


def _milliseconds(seconds: Mapping[str, float] | None) -> str:
    if seconds is None:
        return '-'
    median, least, greatest = (1000 * seconds[key] for key in ('median', 'min', 'max'))
    return f'{median:.1f} ({least:.1f} to {greatest:.1f})'


def _memory(memory: Mapping[str, Mapping[str, int | None]]) -> str:
    rows = [[name, *(None if size is None else size / 1e6 for size in of.values())] for name, of in memory.items()]
    return format_table(['memory, MB', 'before the first step', 'peak'], rows)


def _flops(flops: Mapping[str, Any]) -> str:
    parts = ', '.join(f'{name} {count / 1e9:.4g}' for name, count in flops['per_image'].items())
    rates = ', '.join(f'{rate / 1e9:.0f} GFLOP/s in {dtype}' for dtype, rate in flops['matmul_rates'].items())
    return f'GFLOP per image: {parts}\nrate of a large matrix product: {rates}'


def _profile(costs: Sequence[Mapping[str, Any]]) -> str:
    rows = [[c['operator'], 1000 * c['seconds'], 100 * c['share'], c['calls']] for c in costs]
    return format_table(['operator', 'own ms', '% of all', 'calls'], rows)


_SECTIONS = {'flops': _flops, 'memory': _memory, 'profile': _profile}
