from __future__ import annotations

import io
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from densevlm_mm.datasets import BadImageError
from densevlm_mm.datasets.image_file import open_image, read_image, reduce_jpeg, to_rgb

NOISE = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)


def encoded(format: str, image: np.ndarray = NOISE) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format)
    return buffer.getvalue()


def kind_of(path) -> str:
    with pytest.raises(BadImageError, match=f'{path.name}: .*; fetch it again or drop it') as error:
        read_image(str(path))
    assert error.value.path == str(path)
    return error.value.kind


@pytest.mark.parametrize(
    'content, kind',
    [
        (b'', 'empty'),
        (b'no image at all', 'unreadable'),
        (encoded('webp')[:300], 'unreadable'),
        (encoded('jpeg')[:500], 'truncated'),
        (encoded('png')[:500], 'truncated'),
        (encoded('tiff')[:-100], 'truncated'),
    ],
)
def test_kinds_of_bad_files(tmp_path, content, kind):
    path = tmp_path / 'broken.jpg'
    path.write_bytes(content)
    assert kind_of(path) == kind


def test_decompression_bomb(tmp_path, monkeypatch):
    path = tmp_path / 'bomb.png'
    path.write_bytes(encoded('png'))
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 24 * 32 // 2 - 1)
    assert kind_of(path) == 'too large'


@pytest.mark.filterwarnings('ignore::UserWarning:PIL')
@pytest.mark.parametrize('format', ['jpeg', 'png', 'webp', 'tiff', 'bmp'])
@given(data=st.data())
def test_damaged_file_is_bad_or_an_image(tmp_path_factory, format, data):
    """Whatever a damaged file makes Pillow raise, training sees a bad image."""
    content = bytearray(encoded(format))
    start = data.draw(st.integers(0, len(content) - 1))
    content[start : start + 8] = data.draw(st.binary(min_size=8, max_size=8))
    path = tmp_path_factory.getbasetemp() / f'damaged.{format}'
    path.write_bytes(content)
    try:
        image, _ = to_rgb(read_image(str(path)), str(path))
        assert image.mode == 'RGB'
    except BadImageError as error:
        assert error.kind in ('truncated', 'unreadable', 'too large') and str(path) in str(error)


def test_missing_file_is_not_a_bad_image(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere.jpg'):
        read_image(str(tmp_path / 'nowhere.jpg'))


def test_memory_that_is_full_is_not_a_bad_image(tmp_path, monkeypatch):
    path = tmp_path / 'image.png'
    path.write_bytes(encoded('png'))

    def load(image):
        raise MemoryError

    monkeypatch.setattr('PIL.PngImagePlugin.PngImageFile.load', load)
    with pytest.raises(MemoryError):
        read_image(str(path))


def test_part_of_a_file(tmp_path):
    content = encoded('png')
    path = tmp_path / 'many.bin'
    path.write_bytes(b'before' + content + b'after')
    image = read_image('many.bin/image.png', (str(path), 6, len(content)))
    np.testing.assert_array_equal(np.asarray(image), NOISE)
    with pytest.raises(BadImageError, match=r'many.bin/image.png: .*truncated') as error:
        read_image('many.bin/image.png', (str(path), 6, len(content) // 2))
    assert error.value.kind == 'truncated'
    with pytest.raises(BadImageError, match='is empty'):
        read_image('many.bin/image.png', (str(path), 6 + len(content) + 5, 10))


def test_error_survives_the_way_out_of_a_worker():
    """A data loader makes it anew from its message."""
    error = BadImageError('a.jpg: is bad', kind='empty', path='a.jpg')
    assert str(BadImageError(str(error))) == str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def convert(image: Image.Image) -> tuple[np.ndarray, str | None]:
    rgb, kind = to_rgb(image, 'image.png')
    assert rgb.mode == 'RGB'
    return np.asarray(rgb), kind


@pytest.mark.parametrize(
    'mode, kind',
    [
        ('RGB', None), ('1', 'bilevel'), ('L', 'greyscale'), ('LA', 'alpha'), ('RGBA', 'alpha'), ('P', 'palette'),
        ('CMYK', 'CMYK'), ('YCbCr', 'YCbCr'), ('HSV', 'HSV'),
    ],
)  # fmt: skip
def test_conversions_have_names(mode, kind):
    pixels, found = convert(Image.new('RGB', (4, 3), (255, 255, 255)).convert(mode))
    assert found == kind
    assert pixels.shape == (3, 4, 3) and (pixels >= 254).all()


@given(st.integers(0, 65535))
def test_16_bits_are_scaled(value):
    for array in (np.full((2, 2), value, np.uint16), np.array([[value, value], [value, 65535]], np.int32)):
        pixels, kind = convert(Image.fromarray(array))
        assert kind == '16-bit'
        assert (pixels[0, 0] == round(value / 257)).all()


def test_16_bit_files(tmp_path):
    values = np.arange(0, 65536, 6553, dtype=np.uint16)[None]
    for name in ('deep.png', 'deep.tif'):
        Image.fromarray(values).save(tmp_path / name)
        pixels, kind = convert(read_image(str(tmp_path / name)))
        assert kind == '16-bit'
        np.testing.assert_array_equal(pixels[0, :, 0], np.round(values[0] / 257))
    (tmp_path / 'deep.pgm').write_bytes(b'P5 11 1 65535\n' + values.astype('>u2').tobytes())
    np.testing.assert_array_equal(convert(read_image(str(tmp_path / 'deep.pgm')))[0], pixels)


@pytest.mark.parametrize('value, dtype', [(65536, np.int32), (-1, np.int32), (0.5, np.float32)])
def test_numbers_without_a_known_range_are_refused(value, dtype):
    with pytest.raises(BadImageError, match='image.png: holds numbers .*convert it to 8 bits') as error:
        convert(Image.fromarray(np.full((2, 2), value, dtype)))
    assert error.value.kind == 'value range' and error.value.path == 'image.png'


@pytest.mark.filterwarnings('error')
def test_transparent_palette_keeps_its_colours(tmp_path):
    palette = Image.fromarray(NOISE).quantize(16)
    palette.save(tmp_path / 'palette.png', transparency=bytes([0, 128]) + bytes([255]) * 14)
    pixels, kind = convert(read_image(str(tmp_path / 'palette.png')))
    assert kind == 'palette'
    np.testing.assert_array_equal(pixels, np.asarray(palette.convert('RGB')))


@pytest.mark.parametrize(
    'sides, longest, divisor',
    [
        ((64, 48), 65, 1), ((64, 48), 33, 1), ((64, 48), 32, 2), ((48, 64), 32, 2), ((64, 48), 9, 4), ((64, 48), 1, 8),
        ((64, 4), 9, 4), ((63, 47), 16, 2), ((65, 49), 16, 4),
    ],
)  # fmt: skip
def test_jpeg_is_decoded_at_part_of_its_size(tmp_path, sides, longest, divisor):
    path = tmp_path / 'image.jpg'
    Image.new('RGB', sides).save(path)
    image = open_image(str(path))
    assert reduce_jpeg(image, longest) == divisor
    image.load()
    assert image.size == tuple(-(-side // divisor) for side in sides)


def test_only_jpegs_are_reduced(tmp_path):
    path = tmp_path / 'image.jpg'
    path.write_bytes(encoded('png'))
    image = open_image(str(path))
    assert reduce_jpeg(image, 4) == 1
    np.testing.assert_array_equal(np.asarray(image), NOISE)
