"""Random choices of one item of an epoch."""

from __future__ import annotations

import numpy as np


def item_generator(seed: int, results: dict) -> np.random.Generator:
    """Generator for an item.

    One asked for as ``(epoch, index)`` (see :class:`EpochSampler`) gets a generator that depends on seed, epoch and
    index only, however many workers and processes there are and wherever a run was resumed; otherwise it is drawn from
    NumPy's global generator, which mmengine seeds in every worker.
    """
    if 'epoch' in results:
        return np.random.default_rng((seed, results['epoch'], results['sample_idx']))
    return np.random.default_rng(np.random.randint(2**31))
