"""Memory that stays with the process."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from densevlm_mm.apis import host_memory, keep_freed_memory

PAGE_FAULTS = """
import resource
import torch
from densevlm_mm.apis import keep_freed_memory

def page_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(64 * 2**20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

kept = keep_freed_memory()
# a small block may come to lie in what the last one freed, and the next one then needs a new place
print(kept, min(page_faults() for _ in range(5)))
"""


def run(**env: str) -> tuple[bool, int]:
    """Whether a process keeps its memory, and its faults when it takes what it had freed before."""
    unset = {key: value for key, value in os.environ.items() if key not in host_memory._SETTINGS}
    command = [sys.executable, '-c', PAGE_FAULTS]
    done = subprocess.run(command, env={**unset, **env}, capture_output=True, text=True, check=True)
    kept, faults = done.stdout.split()
    return kept == 'True', int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='asks glibc')
def test_freed_memory_comes_without_page_faults():
    kept, faults = run()
    assert kept and faults < 10


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='asks glibc')
@pytest.mark.parametrize('setting', ['MALLOC_MMAP_THRESHOLD_', 'MALLOC_TRIM_THRESHOLD_'])
def test_what_the_environment_says_stays(setting):
    kept, faults = run(**{setting: str(2**17)})
    assert not kept
    # 16,384 pages, or 32 where they are huge
    assert faults > 20


def test_other_allocators_are_left_alone(monkeypatch):
    monkeypatch.setattr(platform, 'libc_ver', lambda: ('', ''))
    assert not keep_freed_memory()
