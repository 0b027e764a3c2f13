"""Means over the rows of all processes."""

from __future__ import annotations

import torch
from mmengine.dist import all_reduce
from torch import Tensor


def mean_divisors(counts: Tensor) -> Tensor:
    """What sums over this process's rows must be divided by to become means over those of all processes.

    DDP averages gradients over the processes, whose batches need not hold equally many rows. With these divisors the
    average is the gradient of one process with the whole batch.

    Args:
        counts: ``(G,)`` numbers of rows in this process, one per sum.

    Returns:
        ``(G,)`` fp32: rows per process, averaged over the processes, at least one row overall.
    """
    counts = counts.float()
    total, processes = counts.clone(), torch.ones_like(counts[:1])
    all_reduce(total)
    all_reduce(processes)
    return total.clamp(min=1) / processes
