from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmengine.model import ImgDataPreprocessor
from PIL import Image

from densevlm_mm.datasets import BadImageError, LoadImage, PackRegions, ResizeLongestPad

MEAN = np.array((0.48145466, 0.4578275, 0.40821073), np.float32)
STD = np.array((0.26862954, 0.26130258, 0.27577711), np.float32)


def save(path, image: np.ndarray | Image.Image, **options) -> str:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(path, **options)
    return str(path)


@pytest.mark.parity
@pytest.mark.parametrize('number', range(3))
def test_pixels_are_those_of_the_reference(parity, tmp_path, number):
    """Number 2 is grey. The normalisation is also that of the data preprocessor of the models."""
    path = save(tmp_path / 'image.png', parity[f'img{number}'])
    results = ResizeLongestPad(64)(LoadImage()({'img_path': path}))
    expected = parity[f'det{number}_64']
    normalized = (results['img'].astype(np.float32) / 255 - MEAN) / STD
    np.testing.assert_allclose(normalized.transpose(2, 0, 1), expected, rtol=0, atol=1e-6)

    batch = {key: [value] for key, value in PackRegions()(results).items()}
    preprocessor = ImgDataPreprocessor(mean=(MEAN * 255).tolist(), std=(STD * 255).tolist())
    on_device = torch.stack([*preprocessor(batch)['inputs']])[0]
    np.testing.assert_allclose(on_device.numpy(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'CMYK'])
def test_every_mode_becomes_rgb(tmp_path, mode):
    image = Image.new('RGB', (20, 12), (255, 255, 255)).convert(mode)
    path = save(tmp_path / ('image.tif' if mode == 'CMYK' else 'image.png'), image)
    results = LoadImage()({'img_path': path})
    assert results['img'].dtype == np.uint8
    assert results['ori_shape'] == results['img'].shape[:2] == (12, 20)
    assert (results['img'] == 255).all()


def test_exif_orientation_only_on_request(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / 'image.jpg', Image.new('RGB', (40, 20)), exif=exif)
    assert LoadImage()({'img_path': path})['ori_shape'] == (20, 40)
    assert LoadImage(exif=True)({'img_path': path})['ori_shape'] == (40, 20)


def jpeg_bytes() -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, 'jpeg')
    return buffer.getvalue()


@pytest.mark.parametrize(
    'content, message',
    [
        (b'', 'is empty'),
        (b'no image at all', 'cannot be decoded'),
        (jpeg_bytes()[:2000], 'cannot be decoded'),
    ],
)
def test_broken_file_is_an_error_that_names_it(tmp_path, content, message):
    path = tmp_path / 'broken.jpg'
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f'broken.jpg: .*{message}.*drop it from the data set'):
        LoadImage()({'img_path': str(path)})


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere.jpg'):
        LoadImage()({'img_path': str(tmp_path / 'nowhere.jpg')})


def test_image_that_is_too_small_is_an_error(tmp_path):
    path = save(tmp_path / 'small.png', Image.new('RGB', (9, 40)))
    with pytest.raises(BadImageError, match='small.png: is 9x40 px, at least 10 px') as error:
        LoadImage()({'img_path': path})
    assert (error.value.kind, error.value.path) == ('too small', path)
    assert LoadImage(min_side=9)({'img_path': path})['ori_shape'] == (40, 9)


def test_what_was_converted_is_noted(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = save(tmp_path / 'plain.png', Image.new('RGB', (20, 12)))
    grey = save(tmp_path / 'grey.jpg', Image.new('L', (20, 12)), exif=exif)
    deep = save(tmp_path / 'deep.png', np.full((20, 20), 40000, np.uint16))
    assert 'converted' not in LoadImage(exif=True)({'img_path': plain})
    assert LoadImage()({'img_path': grey})['converted'] == ('greyscale',)
    assert LoadImage(exif=True)({'img_path': grey})['converted'] == ('greyscale', 'EXIF rotation')
    results = LoadImage()({'img_path': deep})
    assert results['converted'] == ('16-bit',) and (results['img'] == 156).all()


@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([16, 33, 64]))
def test_resized_image_fills_the_longest_side_and_is_padded_with_zeros(width, height, size):
    white = np.full((height, width, 3), 255, np.uint8)
    results = ResizeLongestPad(size)({'img': white, 'ori_shape': (height, width)})
    rows = max(1, round(height * size / max(height, width)))
    cols = max(1, round(width * size / max(height, width)))
    assert max(rows, cols) == size
    assert results['img'].shape == (size, size, 3) and results['img_shape'] == (size, size)
    assert results['scale'] == size / max(height, width) and results['ori_shape'] == (height, width)
    assert (results['img'][:rows, :cols] == 255).all()
    assert results['img'].sum() == rows * cols * 3 * 255


def test_size_must_be_positive():
    with pytest.raises(ValueError, match='size'):
        ResizeLongestPad(0)
