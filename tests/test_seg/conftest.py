"""A tiny CLIP with random weights, for segmentors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mmengine.registry import DefaultScope

from densevlm_mm.vlm import VLM


@pytest.fixture(autouse=True)
def scope():
    """MMSegmentation's names are found without a prefix, as in its configs."""
    with DefaultScope.overwrite_default_scope('mmseg'):
        yield


@pytest.fixture(scope='session')
def clip(tiny_arch, tmp_path_factory) -> dict[str, Any]:
    """Arch and checkpoint of a tiny EVA-02-CLIP with random weights, patches of 8 px, that speaks `miniworld_words`."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp('clip') / 'clip.pt'
    arch = tiny_arch()
    torch.save({'state_dict': VLM(arch).state_dict()}, path)
    return {'arch': arch, 'checkpoint': str(path)}
