"""Stages, turns, medians, ratios."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from densevlm_mm.benchmark.timing import StageClock, by_stage, spread, summarize, take_turns

seconds = st.floats(1e-6, 1e3)
rounds = st.lists(st.tuples(seconds, seconds), min_size=1, max_size=6)


def test_stages_add_up_to_the_whole():
    clock = StageClock('cpu')
    clock.start()
    for stage in ('a', 'b', 'a'):
        time.sleep(0.001)
        clock.lap(stage)
    timing = clock.stop()
    assert list(timing) == ['a', 'b', 'total']
    assert timing['a'] >= 0.002
    assert timing['a'] + timing['b'] <= timing['total']


def test_a_clock_starts_anew():
    clock = StageClock('cpu')
    clock.start()
    clock.lap('a')
    clock.start()
    assert list(clock.stop()) == ['total']


def test_candidates_take_turns_and_warm_ups_do_not_count():
    order, told, ticks = [], [], itertools.count()

    def run(name: str) -> dict[str, float]:
        order.append(name)
        return {'total': float(next(ticks))}

    candidates = {name: lambda name=name: run(name) for name in 'AB'}
    runs = take_turns(candidates, repeats=2, warmup=1, progress=told.append)
    assert order == list('ABABAB')
    assert runs == {'A': [{'total': 2.0}, {'total': 4.0}], 'B': [{'total': 3.0}, {'total': 5.0}]}
    assert [line.split('  ')[0] for line in told] == ['warm-up'] * 2 + ['round 1/2'] * 2 + ['round 2/2'] * 2


def test_a_stage_that_a_run_did_not_have_took_no_time():
    assert by_stage([{'a': 1.0, 'total': 3.0}, {'total': 2.0}]) == {
        'a': {'median': 0.5, 'min': 0.0, 'max': 1.0},
        'total': {'median': 2.5, 'min': 2.0, 'max': 3.0},
    }


@given(rounds)
def test_ratios_are_taken_round_by_round(pairs):
    runs = {name: [{'total': pair[i]} for pair in pairs] for i, name in enumerate(('ours', 'theirs'))}
    summary = summarize(runs, images=4)
    ratios = summary['ratios']['theirs']
    assert ratios['pairs'] == [theirs / ours for ours, theirs in pairs]
    assert ratios | spread(ratios['pairs']) == ratios
    least, greatest = min(ratios['pairs']), max(ratios['pairs'])
    assert least <= ratios['median'] <= greatest
    ours, theirs = zip(*pairs, strict=True)
    assert ratios['fastest'] == min(theirs) / min(ours)
    rate = summary['candidates']['ours']['images_per_second']
    assert rate * summary['candidates']['ours']['seconds']['total']['median'] == pytest.approx(4)


def test_a_single_candidate_has_no_ratio():
    assert summarize({'ours': [{'total': 1.0}]}, images=1)['ratios'] == {}
