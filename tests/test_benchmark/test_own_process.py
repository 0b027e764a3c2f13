"""Functions and objects in processes of their own."""

from __future__ import annotations

import os
from collections import Counter

import pytest
import torch

from densevlm_mm.benchmark.machine import peak_memory
from densevlm_mm.benchmark.own_process import Resident, in_own_process


@pytest.mark.skipif(peak_memory('cpu') is None, reason='only Linux tells')
def test_a_process_of_its_own_has_a_peak_of_its_own():
    ballast = torch.ones(1_500_000_000, dtype=torch.uint8)
    assert 0 < in_own_process(peak_memory, 'cpu') < ballast.nbytes


def test_a_resident_stays_as_its_methods_leave_it():
    with Resident(Counter, 'abba') as resident:
        resident.ask('update', 'cab')
        assert resident.ask('most_common', 1) == [('a', 3)]
        with pytest.raises(TypeError, match='unhashable'):
            resident.ask('update', [[]])
        assert resident.ask('total') == 7


def test_residents_live_apart():
    with Resident(os.getpid) as one, Resident(os.getpid) as other:
        pids = {one.ask('__int__'), other.ask('__int__'), os.getpid()}
    assert len(pids) == 3
    for pid in pids - {os.getpid()}:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_an_error_that_cannot_be_pickled_is_told_with_its_traceback():
    with pytest.raises(RuntimeError, match='(?s)line 2, in <module>.*Untold: the reason'):
        in_own_process(exec, "class Untold(Exception): pass\nraise Untold('the reason')")


def test_what_cannot_be_made_is_said_here():
    with pytest.raises(ValueError, match='invalid literal'):
        Resident(int, 'seven')
