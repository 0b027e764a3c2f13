"""A tiny CLIP with random weights, for segmentors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mmengine.registry import DefaultScope
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from densevlm_mm.vlm import VLM


class LargestTensor(TorchDispatchMode):
    """Remembers how many numbers the largest tensor made had."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, (tuple, list)) else [found]:
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return found


@pytest.fixture(autouse=True)
def scope():
    """MMSegmentation's names are found without a prefix, as in its configs."""
    with DefaultScope.overwrite_default_scope('mmseg'):
        yield


@pytest.fixture
def largest_tensor() -> LargestTensor:
    """``with largest_tensor as largest``, after which ``largest.numel`` tells."""
    return LargestTensor()


@pytest.fixture(scope='session')
def clip(tiny_arch, tmp_path_factory) -> dict[str, Any]:
    """Arch and checkpoint of a tiny EVA-02-CLIP with random weights, patches of 8 px, that speaks `miniworld_words`."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp('clip') / 'clip.pt'
    arch = tiny_arch()
    torch.save({'state_dict': VLM(arch).state_dict()}, path)
    return {'arch': arch, 'checkpoint': str(path)}
