"""What holds for every test: no network, two threads, fixed seeds, and caches in a temporary folder."""

from __future__ import annotations

import os

# before anything imports huggingface_hub or matplotlib
os.environ['HF_HUB_OFFLINE'] = '1'
os.environ['MPLBACKEND'] = 'Agg'

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

SEED = 0

# Reproducible everywhere and indifferent to how busy the machine is.
settings.register_profile('densevlm_mm', deadline=None, derandomize=True, database=None)
settings.load_profile('densevlm_mm')
torch.set_num_threads(2)


@pytest.fixture(autouse=True)
def seed() -> int:
    """Every test starts from the same random state."""
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)
    return SEED


@pytest.fixture(autouse=True, scope='session')
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Text embeddings and the like are cached here, never in the home directory."""
    folder = tmp_path_factory.mktemp('cache')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('DENSEVLM_CACHE', str(folder))
        yield folder


@pytest.fixture(scope='session')
def data_dir() -> Path:
    """``tests/data``; the numbers computed by the reference implementation are in its ``parity`` folder."""
    return Path(__file__).parent / 'data'
