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


def test_residents_live_apart_and_stay_as_their_methods_leave_them():
    with Resident(Counter, 'abba') as counter, Resident(os.getpid) as other:
        counter.ask('update', 'cab')
        assert counter.ask('most_common', 1) == [('a', 3)]
        with pytest.raises(TypeError, match='unhashable'):
            counter.ask('update', [[]])
        assert counter.ask('total') == 7
        pid = other.ask('__int__')
        assert pid != os.getpid()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_what_cannot_be_made_is_said_here_even_by_an_error_that_cannot_be_pickled():
    with pytest.raises(RuntimeError, match='(?s)line 2, in <module>.*Untold: the reason'):
        Resident(exec, "class Untold(Exception): pass\nraise Untold('the reason')")
