"""What holds for every test: no network, two threads, fixed seeds, and caches in a temporary folder."""

from __future__ import annotations

import os

# before anything imports huggingface_hub or matplotlib
os.environ['HF_HUB_OFFLINE'] = '1'
os.environ['MPLBACKEND'] = 'Agg'
# and before torch starts its threads: spinning ones fight over busy cores
os.environ.setdefault('OMP_WAIT_POLICY', 'passive')

import logging
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

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
def freed_memory_goes_back() -> Iterator[None]:
    """Tools that run in this process leave its allocator as it is: others measure memory here."""
    allocator = SimpleNamespace(mallopt=lambda parameter, value: 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('densevlm_mm.apis.host_memory.ctypes', SimpleNamespace(CDLL=lambda name: allocator))
        yield


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


@pytest.fixture(scope='session')
def miniworld(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mini world of 24 training and 8 validation images of 48 px."""
    from densevlm_mm.datasets.miniworld import generate_miniworld

    root = tmp_path_factory.mktemp('data') / 'miniworld'
    generate_miniworld(root, num_train=24, num_val=8, size=48)
    return root


@pytest.fixture(scope='session')
def tiny_arch() -> Callable[..., dict]:
    """Makes model configs of CLIPs that speak the words of the mini world: EVA-02, patches of 8 px, two blocks."""
    from densevlm_mm.datasets.miniworld import miniworld_words

    def make(width: int = 32, embed_dim: int = 16) -> dict:
        vision = {'image_size': 32, 'patch_size': 8, 'layers': 2, 'width': width, 'head_width': 16, 'mlp_ratio': 2.6667}
        vision |= {'eva_model_name': 'tiny', 'pt_hw_seq_len': 4, 'rope': True, 'naiveswiglu': True, 'subln': True}
        text = {'context_length': 18, 'width': 32, 'heads': 2, 'layers': 1, 'words': miniworld_words()}
        return {'embed_dim': embed_dim, 'vision_cfg': vision, 'text_cfg': text}

    return make


@pytest.fixture
def logger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[logging.Logger]:
    """The logger of a run, with a file ``run.log`` in the test's folder."""
    from mmengine.logging import MMLogger

    logger = MMLogger.get_instance(tmp_path.name, logger_name='run', log_file=str(tmp_path / 'run.log'))
    monkeypatch.setattr(MMLogger, 'get_current_instance', classmethod(lambda cls: logger))
    yield logger
    for handler in logger.handlers:
        handler.close()
    MMLogger._instance_dict.pop(tmp_path.name)  # the newest one is everybody's, and its file is closed
