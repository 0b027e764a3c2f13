"""Leaving a distributed run."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import pytest
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from densevlm_mm.apis import close_process_group


@pytest.fixture
def group(tmp_path):
    """A process group of one process."""
    distributed.init_process_group('gloo', init_method=f'file://{tmp_path / "store"}', rank=0, world_size=1)
    yield
    if distributed.is_initialized():
        distributed.destroy_process_group()


def gloo_threads() -> int:
    return sum('gloo' in file.read_text() for file in Path('/proc/self/task').glob('*/comm'))


def test_nothing_happens_without_a_group():
    close_process_group()
    assert not distributed.is_initialized()


def test_the_group_is_closed(group):
    close_process_group()
    assert not distributed.is_initialized()


@pytest.mark.skipif(sys.platform != 'linux', reason='threads are named under /proc')
def test_no_thread_outlives_the_group(group):
    runner = {'model': DistributedDataParallel(nn.Linear(2, 2))}
    runner['itself'] = runner  # as mmengine's runner and its hooks, only the collector can free it
    gc.disable()
    try:
        del runner
        assert gloo_threads() > 0
        close_process_group()
        assert gloo_threads() == 0
    finally:
        gc.enable()
