"""Times of code: stage by stage, several candidates in turns, medians with their spread."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import torch

#: Seconds of each stage of one run, and of the whole as 'total'.
Timing = dict[str, float]
TOTAL = 'total'


class StageClock:
    """Stopwatch for the stages of what runs on one device.

    On a GPU a lap is an event in its stream: a stage then lasts from when the device has finished the stage before it
    until it has finished this one, and nothing waits for the sake of the measurement but at start and stop.

    Args:
        device: 'cpu', 'cuda' or 'cuda:N'.
    """

    def __init__(self, device: str | torch.device) -> None:
        self.device = torch.device(device)
        self._laps: list[tuple[str, float | torch.cuda.Event]] = []
        self._started = 0.0

    def start(self) -> None:
        """Wait for the device and begin."""
        self._wait()
        self._started = time.perf_counter()
        self._laps = [('', self._now())]

    def lap(self, stage: str) -> None:
        """End a stage; one that ends twice counts with both its parts."""
        self._laps.append((stage, self._now()))

    def stop(self) -> Timing:
        """Wait for the device; seconds of all stages, and ``total`` as the wall clock saw it."""
        self._wait()
        total = time.perf_counter() - self._started
        seconds: Timing = {}
        for (_, before), (stage, now) in zip(self._laps, self._laps[1:], strict=False):
            seconds[stage] = seconds.get(stage, 0.0) + self._between(before, now)
        return {**seconds, TOTAL: total}

    def _now(self) -> float | torch.cuda.Event:
        if self.device.type != 'cuda':
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    @staticmethod
    def _between(before: float | torch.cuda.Event, now: float | torch.cuda.Event) -> float:
        return now - before if isinstance(now, float) else before.elapsed_time(now) / 1000

    def _wait(self) -> None:
        if self.device.type == 'cuda':
            torch.cuda.synchronize(self.device)


def take_turns(
    candidates: Mapping[str, Callable[[], Timing]],
    *,
    repeats: int,
    warmup: int,
    progress: Callable[[str], None],
) -> dict[str, list[Timing]]:
    """Run candidates A B A B ..., so that a machine that slows down or speeds up does so for all of them.

    Args:
        candidates: What to run, by name.
        repeats: Rounds that count.
        warmup: Rounds before them that do not.
        progress: Told of every run.

    Returns:
        Per candidate the timings of the rounds that count; the i-th of each belong together.
    """
    runs: dict[str, list[Timing]] = {name: [] for name in candidates}
    for number in range(-warmup, repeats):
        for name, run in candidates.items():
            timing = run()
            kind = 'warm-up' if number < 0 else f'round {number + 1}/{repeats}'
            progress(f'{kind}  {name}: {timing[TOTAL]:.3f} s')
            if number >= 0:
                runs[name].append(timing)
    return runs


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {'median': median(values), 'min': min(values), 'max': max(values)}


def by_stage(timings: Sequence[Timing]) -> dict[str, dict[str, float]]:
    """Spread of the seconds of each stage; one that a run did not have counts as 0 there."""
    stages = dict.fromkeys(stage for timing in timings for stage in timing if stage != TOTAL)
    return {stage: spread([timing.get(stage, 0.0) for timing in timings]) for stage in (*stages, TOTAL)}


def summarize(runs: Mapping[str, Sequence[Timing]], images: int) -> dict[str, Any]:
    """What a measurement comes to.

    Args:
        runs: Of `take_turns`.
        images: How many each run worked through.

    Returns:
        ``images``; ``candidates``, each with the spread of the ``seconds`` of its stages and its median
        ``images_per_second``; and ``ratios`` of `compare`.
    """
    candidates = {}
    for name, timings in runs.items():
        seconds = by_stage(timings)
        candidates[name] = {'seconds': seconds, 'images_per_second': images / seconds[TOTAL]['median']}
    return {'images': images, 'candidates': candidates, 'ratios': compare(runs)}


def compare(runs: Mapping[str, Sequence[Timing]]) -> dict[str, dict[str, Any]]:
    """How many times as long as the first candidate the others took, round by round.

    Returns:
        Per other candidate the ratios as ``pairs``, and their spread; and as ``fastest`` that of the shortest run of
        each. What else a machine does only ever adds time, so where it does much, this says most about the code.
    """
    first, *others = runs
    return {name: _paired(runs[name], runs[first]) for name in others}


def _paired(slow: Sequence[Timing], fast: Sequence[Timing]) -> dict[str, Any]:
    pairs = [a[TOTAL] / b[TOTAL] for a, b in zip(slow, fast, strict=True)]
    fastest = min(timing[TOTAL] for timing in slow) / min(timing[TOTAL] for timing in fast)
    return {'pairs': pairs, **spread(pairs), 'fastest': fastest}
