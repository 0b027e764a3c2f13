"""Small models with the reference's weights, and the numbers that the reference computed with them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from densevlm_mm.vlm import VLM, load_vlm

KEYS = ('embed_dim', 'vision_cfg', 'text_cfg', 'quick_gelu')


@pytest.fixture(autouse=True, scope='module')
def one_thread() -> Iterator[None]:
    """Models this small lose time to a second thread, and all of it when the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope='session')
def parity_dir(data_dir) -> Path:
    return data_dir / 'parity'


@pytest.fixture(scope='session')
def read_npz(parity_dir) -> Callable[[str], dict[str, torch.Tensor]]:
    """All arrays of ``tests/data/parity/{name}.npz`` as tensors."""

    def read(name: str) -> dict[str, torch.Tensor]:
        with np.load(parity_dir / f'{name}.npz') as data:
            return {key: torch.from_numpy(data[key]) for key in data.files}

    return read


@pytest.fixture(scope='session')
def tiny_arch(parity_dir) -> Callable[[str], dict]:
    """A fresh model config of 'eva' (patch 16, native 64 px, 4 blocks) or 'openai' (patch 8, 48 px, 3 blocks)."""

    def read(family: str) -> dict:
        config = json.loads((parity_dir / f'{family}_tiny.json').read_text(encoding='utf-8'))
        return {key: config[key] for key in KEYS}

    return read


@pytest.fixture(scope='session')
def tiny_vlm(tiny_arch, parity_dir) -> Callable[..., VLM]:
    """A fresh model of 'eva' or 'openai' with the reference's weights, further arguments for `load_vlm`."""

    def load(family: str, **kwargs: object) -> VLM:
        return load_vlm(tiny_arch(family), parity_dir / f'{family}_tiny.pt', **kwargs)

    return load


@pytest.fixture(scope='session', params=['eva', 'openai'])
def family(request) -> str:
    return request.param


@pytest.fixture(scope='session')
def vlm(family, tiny_vlm) -> VLM:
    """One frozen model per family for tests that only look at it."""
    return tiny_vlm(family).requires_grad_(False)


@pytest.fixture(scope='session')
def word_arch() -> dict:
    """A model config with a tokenizer of its own: an EVA tower of two narrow blocks that reads whole words."""
    vision = {'image_size': 16, 'patch_size': 8, 'width': 16, 'layers': 2, 'head_width': 8, 'mlp_ratio': 2.6667}
    vision |= {'eva_model_name': 'words', 'rope': True, 'naiveswiglu': True, 'subln': True, 'pt_hw_seq_len': 2}
    words = ['a', 'an', 'apple', 'cat', 'photo', 'of', 'sky', 'the', 'this', 'is', 'tree']
    text = {'context_length': 10, 'width': 16, 'heads': 2, 'layers': 1, 'words': words}
    return {'embed_dim': 12, 'vision_cfg': vision, 'text_cfg': text}


@pytest.fixture
def word_vlm(word_arch) -> VLM:
    """A randomly initialised model of `word_arch`."""
    return load_vlm(word_arch)
