"""Models of no size, on both sides of the comparison."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from densevlm_mm.benchmark.options import StepOptions
from densevlm_mm.benchmark.step import build_step, make_photos
from densevlm_mm.benchmark.training import TrainingStep

TINY = StepOptions(
    student='tiny-student', teacher='tiny-teacher', image_size=64, batch_sizes=(2,), classes=(12,), memory=False,
    matmul_size=64, repeats=2, warmup=0,
)  # fmt: skip


@pytest.fixture
def options() -> StepOptions:
    """A step of no size."""
    return TINY


@pytest.fixture
def steps(tmp_path) -> Callable[..., dict[str, TrainingStep]]:
    """Builds both training steps with the same weights, images and boxes."""

    def build(**changes: object) -> dict[str, TrainingStep]:
        options = replace(TINY, **changes)
        photos = make_photos(options, tmp_path)
        return {name: build_step(name, options, photos) for name in options.candidates}

    return build
