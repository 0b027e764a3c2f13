"""Both ways of evaluating and encoding give the same numbers."""

from __future__ import annotations

import pytest
import torch

from densevlm_mm.benchmark.evaluate import build_predictors
from densevlm_mm.benchmark.inference import build_encoders
from densevlm_mm.benchmark.options import EvaluateOptions, InferenceOptions


@pytest.mark.parametrize('baseline', ['reference-like', 'reference-like-fused'])
@pytest.mark.parametrize('with_crops', [False, True])
def test_logits_are_equal(with_crops, baseline):
    options = EvaluateOptions(
        arch='tiny-student', image_size=64, images=3, batch_size=2, regions=4, classes=7, baseline=baseline
    )
    ours, theirs = (predict(with_crops) for predict in build_predictors(options).values())
    assert list(ours) == list(theirs) == ['boxes', 'masks', 'crops'][: 2 + with_crops]
    for kind, logits in ours.items():
        assert logits.shape == (12, 7)
        torch.testing.assert_close(logits, theirs[kind], rtol=1e-4, atol=1e-5)
        assert logits.std(0).min() > 0  # regions differ


@pytest.mark.parametrize(('dtype', 'tolerance'), [('float32', 1e-5), ('bfloat16', 0.1)])
def test_dense_features_are_equal(dtype, tolerance):
    options = InferenceOptions(arch='tiny-student', image_size=64, dtype=dtype)
    images = torch.randn(2, 3, 64, 64)
    ours, theirs = (encode(images).detach().float() for encode in build_encoders(options).values())
    assert ours.shape == (2, 16, 8, 8)
    assert (ours - theirs).norm() <= tolerance * theirs.norm()
