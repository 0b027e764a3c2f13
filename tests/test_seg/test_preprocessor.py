"""Test batches of images of different sizes."""

from __future__ import annotations

import pytest
import torch
from mmseg.models import SegDataPreProcessor
from mmseg.structures import SegDataSample

from densevlm_mm.registry import MODELS

OPTIONS = {'mean': [10.0, 20.0, 30.0], 'std': [2.0, 4.0, 5.0], 'bgr_to_rgb': True}
SIZES = [(4, 6), (5, 3)]


@pytest.fixture
def images() -> list[torch.Tensor]:
    return [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in SIZES]


def test_smaller_images_are_padded_and_say_so(images):
    samples = [SegDataSample() for _ in images]
    ours = MODELS.build({'type': 'densevlm_mm.MixedSizePreProcessor', **OPTIONS})
    batch = ours({'inputs': images, 'data_samples': samples})
    assert batch['inputs'].shape == (2, 3, 5, 6)
    assert [sample.img_padding_size for sample in batch['data_samples']] == [(0, 0, 0, 1), (0, 3, 0, 0)]
    for image, padded in zip(images, batch['inputs'], strict=True):
        height, width = image.shape[-2:]
        alone = SegDataPreProcessor(**OPTIONS)({'inputs': [image]})['inputs'][0]
        assert torch.equal(padded[:, :height, :width], alone)
        assert not padded[:, height:].any()
        assert not padded[:, :, width:].any()


def test_samples_may_be_absent(images):
    batch = MODELS.build({'type': 'densevlm_mm.MixedSizePreProcessor', **OPTIONS})({'inputs': images})
    assert batch['data_samples'] is None


def test_a_fixed_padding_is_mmsegs(images):
    options = {**OPTIONS, 'test_cfg': {'size': (8, 8)}}
    batches = []
    for kind in ('densevlm_mm.MixedSizePreProcessor', 'SegDataPreProcessor'):
        preprocessor = MODELS.build({'type': kind, **options})
        batches.append(preprocessor({'inputs': images[:1], 'data_samples': [SegDataSample()]}))
    assert torch.equal(batches[0]['inputs'], batches[1]['inputs'])
    assert batches[0]['data_samples'][0].img_padding_size == (0, 2, 0, 4)
