"""Arithmetic of the towers, attention included.

Counted on tensors without storage by PyTorch's own counter, which sees every matrix product and convolution; there
attention runs as two matrix products, so that fused kernels, whose insides no counter sees, are counted like any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from densevlm_mm.vlm.architectures import build_vision_tower, resolve_arch

from .timing import TOTAL


def dense_flops(arch: str | Mapping[str, Any], image_size: int, trainable_blocks: int | None = None) -> dict[str, int]:
    """FLOPs of a vision tower's dense features of one square image; a multiplication and an addition count two.

    Args:
        arch: See `load_vlm`.
        image_size: Side in px.
        trainable_blocks: How many of the last blocks train; None for a tower that does not.

    Returns:
        ``forward``, and ``backward`` (0 where nothing trains).
    """
    with torch.device('meta'):
        tower = build_vision_tower(resolve_arch(arch))
        tower.set_trainable(trainable_blocks or 0)
        with FlopCounterMode(display=False) as counter:
            dense = tower.encode_dense(torch.empty(1, 3, image_size, image_size))
            forward = counter.get_total_flops()
            if trainable_blocks:
                dense.sum().backward()
    return {'forward': forward, 'backward': counter.get_total_flops() - forward}


def step_flops(
    student: str | Mapping[str, Any], teacher: str | Mapping[str, Any], image_size: int, trainable_blocks: int
) -> dict[str, int]:
    """FLOPs of a training step per image; pooling and loss, below 0.1 % of it, are left out.

    Returns:
        ``teacher``, ``student``, ``backward`` and ``total``.
    """
    learns = dense_flops(student, image_size, trainable_blocks)
    parts = {'teacher': dense_flops(teacher, image_size)['forward'], 'student': learns['forward']}
    parts['backward'] = learns['backward']
    return {**parts, TOTAL: sum(parts.values())}
