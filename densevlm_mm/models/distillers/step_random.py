"""Random choices of a training step."""

from __future__ import annotations

import numpy as np
from mmengine.logging import MessageHub


def step_generator(seed: int) -> np.random.Generator:
    """Generator that depends on the seed and the number of the training step only.

    All processes draw the same, and a resumed run draws what an uninterrupted one would have drawn. Outside a run the
    step is 0.
    """
    return np.random.default_rng((seed, MessageHub.get_current_instance().get_info('iter', 0)))
