"""What makes a training step cheaper leaves its numbers alone, and the step never waits for the device."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from densevlm_mm.datasets import grid_boxes
from densevlm_mm.models import DenseVLM
from densevlm_mm.registry import MODELS

# What reads a value back, or makes a shape from values: on a GPU the host waits for either.
WAITING = ('aten._local_scalar_dense', 'aten.nonzero', 'aten.masked_select', 'aten.equal')


@pytest.fixture
def build(tiny_arch) -> Callable[..., DenseVLM]:
    """Builds a distiller with the same random weights each time."""

    def make(student: dict | None = None, teacher: dict | None = None) -> DenseVLM:
        torch.manual_seed(0)
        config = {
            'type': 'densevlm_mm.DenseVLM',
            'student': {'arch': tiny_arch(), 'trainable_blocks': 2, **(student or {})},
            'teacher': {'arch': tiny_arch(width=48, embed_dim=24), **(teacher or {})},
            'vocabulary': {'things': ['car', 'tree', 'ball'], 'stuff': ['sky', 'water']},
            'loss': {'type': 'densevlm_mm.DecoupledAlignmentLoss', 'score_thr': 0.2},
            'templates': ['a photo of a {}.'],
        }
        return MODELS.build(config).train()

    return make


@pytest.fixture
def batch() -> tuple[Tensor, list[BaseDataElement]]:
    """Two images of 64 px with grids of 2 x 3 and 2 x 2."""
    regions = [InstanceData(boxes=grid_boxes(64, 64, rows, cols) / 64) for rows, cols in ((2, 3), (2, 2))]
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    return images, [BaseDataElement(gt_regions=r) for r in regions]


def step(model: DenseVLM, batch: tuple) -> dict[str, Tensor]:
    """Losses, and the gradient of each trained parameter."""
    losses = model(*batch, mode='loss')
    (losses['loss_thing'] + losses['loss_stuff']).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {**{name: value.detach() for name, value in losses.items()}, **gradients}


@pytest.mark.parametrize(
    'options',
    [
        {'student': {'grad_checkpointing': True}},
        {'student': {'compile': {'backend': 'aot_eager'}}, 'teacher': {'compile': {'backend': 'aot_eager'}}},
    ],
    ids=['checkpointing', 'compiled'],
)
def test_options_change_no_numbers(build, batch, options):
    plain, cheaper = step(build(), batch), step(build(**options), batch)
    assert plain['num_kept'] > 0 and set(plain) == set(cheaper)
    for name, value in plain.items():
        error = (cheaper[name] - value).norm() / value.norm().clamp(min=1e-12)
        assert error < 1e-5, (name, float(error))


class Waiting(TorchDispatchMode):
    """Notes the operators for which a host has to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        by_mask = str(func).startswith(('aten.index.', 'aten.index_put')) and any(
            isinstance(index, Tensor) and index.dtype == torch.bool for index in args[1]
        )
        if by_mask or str(func).startswith(WAITING):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


def test_the_watch_sees_what_waits():
    values = torch.rand(4)
    with Waiting() as watch:
        float(values.max())
        values[values > 0.5]
    assert len(watch.found) == 2


def test_a_step_waits_for_nothing(build, batch):
    model = build()
    with Waiting() as watch:
        losses = model(*batch, mode='loss')
        (losses['loss_thing'] + losses['loss_stuff']).backward()
    assert watch.found == []
