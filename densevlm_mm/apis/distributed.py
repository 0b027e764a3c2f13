"""Leaving a distributed run."""

from __future__ import annotations

from mmengine.dist import barrier
from torch import distributed


def close_process_group() -> None:
    """Wait for all processes, then close their connections; nothing without distributed training.

    A process that simply ends may take down connections that others still use, and they abort.
    """
    if distributed.is_available() and distributed.is_initialized():
        barrier()
        distributed.destroy_process_group()
