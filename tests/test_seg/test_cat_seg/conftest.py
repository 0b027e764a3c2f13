"""A tiny CAT-Seg."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from densevlm_mm.registry import MODELS
from densevlm_mm.seg import CATSeg
from densevlm_mm.vlm import VLM

AGGREGATOR = {
    'guidance_dims': (20, 12), 'hidden_dim': 32, 'window': 4, 'pad_len': 6, 'appearance_dim': 16, 'text_dim': 16,
    'decoder_dims': (32, 16), 'guidance_proj_dims': (8, 4),
}  # fmt: skip
OPTIONS = {
    'type': 'densevlm_mm.CATSeg', 'vocabulary': ['car', 'tree', 'star'], 'aggregator': AGGREGATOR,
    'guidance_blocks': (0, 1), 'templates': ['a photo of a {}'], 'clip_size': 32, 'squash_size': 48, 'window': 32,
    'stride': 16,
}  # fmt: skip


@pytest.fixture(scope='session')
def openai_clip(tiny_arch, tmp_path_factory) -> dict[str, Any]:
    """Arch and checkpoint of a tiny CLIP as OpenAI's are, three blocks."""
    torch.manual_seed(0)
    vision = {'image_size': 32, 'patch_size': 8, 'layers': 3, 'width': 32, 'head_width': 16}
    arch = {**tiny_arch(), 'vision_cfg': vision, 'quick_gelu': True}
    path = tmp_path_factory.mktemp('clip') / 'clip.pt'
    torch.save({'state_dict': VLM(arch).state_dict()}, path)
    return {'arch': arch, 'checkpoint': str(path)}


@pytest.fixture(scope='session')
def build(clip) -> Callable[..., CATSeg]:
    """Builds a tiny CAT-Seg in eval mode, on a tiny EVA-02-CLIP unless ``vlm`` is given."""

    def make(**options: Any) -> CATSeg:
        torch.manual_seed(0)
        return MODELS.build(copy.deepcopy({**OPTIONS, 'vlm': clip, **options})).eval()

    return make


@pytest.fixture
def samples() -> Callable[..., list[SegDataSample]]:
    """Makes samples with the given label maps ``(H, W)``."""

    def make(*labels: np.ndarray) -> list[SegDataSample]:
        found = []
        for values in labels:
            sample = SegDataSample(metainfo={'ori_shape': values.shape, 'img_shape': values.shape})
            sample.gt_sem_seg = PixelData(data=torch.as_tensor(values)[None])
            found.append(sample)
        return found

    return make
