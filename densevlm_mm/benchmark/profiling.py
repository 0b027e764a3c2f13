"""Where the time of one step goes, operator by operator."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEventAvg
from torch.profiler import ProfilerActivity, profile

_ROWS = 30
_LARGEST = 8


def profile_to(path: str, run: Callable[[], object], device: str) -> list[dict[str, Any]]:
    """Profile one run and write the profiler's table to a file.

    Args:
        path: Text file, replaced if it is there.
        run: What to profile.
        device: Where it runs; decides whose time counts.

    Returns:
        The largest costs: ``operator`` (on a GPU the kernel), its own ``seconds``, its ``share`` of all, and ``calls``.
    """
    kinds = {'cpu': [ProfilerActivity.CPU], 'cuda': [ProfilerActivity.CPU, ProfilerActivity.CUDA]}
    device_type = torch.device(device).type
    with profile(activities=kinds[device_type], acc_events=True) as profiler:
        run()
    averages = profiler.key_averages()
    key = 'self_cpu_time_total' if device_type == 'cpu' else 'self_device_time_total'
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(averages.table(sort_by=key, row_limit=_ROWS), encoding='utf-8')
    return _largest(averages, key)


def _largest(averages: Iterable[FunctionEventAvg], key: str) -> list[dict[str, Any]]:
    if key == 'self_device_time_total':
        # an operator carries the time of its kernels once more, and so does what encloses them by name
        averages = [e for e in averages if e.device_type != DeviceType.CPU and not e.is_user_annotation]
    times = {event.key: getattr(event, key) for event in averages}
    calls = {event.key: event.count for event in averages}
    total = sum(times.values())
    names = sorted(times, key=times.get, reverse=True)[:_LARGEST]
    # the profiler counts microseconds
    return [
        {'operator': name, 'seconds': times[name] / 1e6, 'share': times[name] / total, 'calls': calls[name]}
        for name in names
    ]
