from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from open_clip.transform import image_transform
from PIL import Image

from densevlm_mm.datasets import ResizeShortestCrop


@given(st.integers(10, 90), st.integers(10, 90), st.sampled_from([16, 32, 33]), st.integers(0, 100))
def test_is_open_clips_preprocessing(height, width, size, seed):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    results = ResizeShortestCrop(size)({'img': image, 'ori_shape': (height, width)})
    expected = image_transform(size, is_train=False, mean=(0.0,) * 3, std=(1.0,) * 3)(Image.fromarray(image))
    assert results['img'].shape == (size, size, 3) and results['img'].dtype == np.uint8
    np.testing.assert_allclose(results['img'].transpose(2, 0, 1) / 255, expected.numpy(), atol=1e-6)
    assert (results['img_shape'], results['ori_shape']) == ((size, size), (height, width))


def test_the_middle_is_kept():
    image = np.zeros((16, 48, 3), np.uint8)
    image[:, 16:32] = 255
    assert ResizeShortestCrop(16)({'img': image})['img'].min() == 255


def test_size_is_checked():
    with pytest.raises(ValueError, match='size must be positive'):
        ResizeShortestCrop(0)
