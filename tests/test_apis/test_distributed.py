"""Leaving a distributed run."""

from __future__ import annotations

from torch import distributed

from densevlm_mm.apis import close_process_group


def test_the_group_is_closed_if_there_is_one(tmp_path):
    close_process_group()
    distributed.init_process_group('gloo', init_method=f'file://{tmp_path / "store"}', rank=0, world_size=1)
    close_process_group()
    assert not distributed.is_initialized()
