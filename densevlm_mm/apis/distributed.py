"""Leaving a distributed run."""

from __future__ import annotations

import gc

from mmengine.dist import barrier
from torch import distributed


def close_process_group() -> None:
    """Wait for all processes, then close their connections; nothing without distributed training.

    A process that simply ends may take down connections that others still use, and they abort. What still holds
    the group is collected here too, so call this when no variable holds the runner any more: runner and wrapped
    model refer to each other, and gloo's threads, which live as long as they do, abort where one lets go of a
    tensor while the interpreter itself is ending.
    """
    if distributed.is_available() and distributed.is_initialized():
        barrier()
        distributed.destroy_process_group()
        gc.collect()
