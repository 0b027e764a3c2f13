from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from densevlm_mm.datasets import BadImageError, LoadImage, LoadResizedImage, ResizeLongestPad

ORIENTATION = 0x0112


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth noise at several scales, and edges."""
    generator = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), 128, np.float32)
    for step, contrast in ((4, 6), (16, 12), (64, 25), (256, 35)):
        shape = (height // step + 1, width // step + 1)
        channels = [Image.fromarray(generator.normal(0, contrast, shape).astype(np.float32)) for _ in range(3)]
        pixels += np.stack([channel.resize((width, height)) for channel in channels], axis=-1)
    rows, columns = np.ogrid[:height, :width]
    for _ in range(30):
        x, y, radius = generator.uniform(0, width), generator.uniform(0, height), generator.uniform(0.01, 0.2) * width
        pixels[(columns - x) ** 2 + (rows - y) ** 2 < radius**2] += generator.normal(0, 40, 3)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def save(path, image: Image.Image, **options) -> str:
    image.save(path, **options)
    return str(path)


def load(path: str, size: int, **options) -> dict:
    return LoadResizedImage(size, **options)({'img_path': path})


def in_two_steps(path: str, size: int, **options) -> dict:
    results = ResizeLongestPad(size)(LoadImage(**options)({'img_path': path}))
    del results['ori_img']
    return results


def assert_same(one: dict, other: dict) -> None:
    np.testing.assert_array_equal(one['img'], other['img'], strict=True)
    assert {**one, 'img': None} == {**other, 'img': None}


def differences(path: str, size: int, **options) -> tuple[float, int]:
    """Mean and largest difference from Pillow's result in 8-bit levels, over the image without its padding."""
    changed, plain = load(path, size, **options), in_two_steps(path, size, exif=options.get('exif', False))
    height, width = (round(side * plain['scale']) for side in plain['ori_shape'])
    error = np.abs(changed.pop('img').astype(int) - plain.pop('img'))
    assert changed == plain
    assert not error[height:].any() and not error[:, width:].any()
    error = error[:height, :width]
    return float(error.mean()), int(error.max())


@given(
    st.integers(10, 90),
    st.integers(10, 90),
    st.sampled_from([16, 33, 64]),
    st.sampled_from(['1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'CMYK']),
    st.sampled_from([None, 1, 3, 6, 8]),
    st.booleans(),
)
def test_result_is_that_of_two_transforms(tmp_path_factory, width, height, size, mode, orientation, exif):
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    options = {}
    if orientation is not None:
        options['exif'] = Image.Exif()
        options['exif'][ORIENTATION] = orientation
    name = 'image.jpg' if mode in ('L', 'RGB', 'CMYK') else 'image.png'
    path = save(tmp_path_factory.getbasetemp() / name, Image.fromarray(noise).convert(mode), **options)
    assert_same(load(path, size, exif=exif), in_two_steps(path, size, exif=exif))


def test_image_in_a_larger_file(tmp_path):
    path = save(tmp_path / 'image.png', photo(30, 20))
    content = (tmp_path / 'image.png').read_bytes()
    (tmp_path / 'many.bin').write_bytes(b'before' + content + b'after')
    item = {'img_path': 'many.bin/image.png', 'img_location': (str(tmp_path / 'many.bin'), 6, len(content))}
    np.testing.assert_array_equal(LoadResizedImage(16)(item)['img'], load(path, 16)['img'])


def test_bad_images_are_errors(tmp_path):
    small = save(tmp_path / 'small.png', Image.new('RGB', (9, 40)))
    with pytest.raises(BadImageError, match='small.png: is 9x40 px, at least 10 px') as error:
        load(small, 16)
    assert (error.value.kind, error.value.path) == ('too small', small)
    assert load(small, 16, min_side=9)['ori_shape'] == (40, 9)
    broken = tmp_path / 'broken.jpg'
    save(broken, photo(64, 64))
    broken.write_bytes(broken.read_bytes()[:900])
    for gap in (None, 1):
        with pytest.raises(BadImageError, match='broken.jpg: cannot be decoded .*truncated'):
            load(str(broken), 16, reducing_gap=gap)
    with pytest.raises(FileNotFoundError, match='nowhere.jpg'):
        load(str(tmp_path / 'nowhere.jpg'), 16)


@pytest.mark.parametrize('sides', [(800, 600), (801, 599), (599, 801), (1023, 340)])
@pytest.mark.parametrize('gap, mean, largest', [(4, 0.25, 4), (2, 0.4, 6), (1, 1.0, 12)])
def test_reduced_jpeg_differs_little(tmp_path, sides, gap, mean, largest):
    """Sides that 2, 4 or 8 does not divide must not shift the image."""
    path = save(tmp_path / 'photo.jpg', photo(*sides), quality=92)
    found = differences(path, 64, reducing_gap=gap)
    assert 0 < found[0] < mean and found[1] <= largest


@pytest.mark.parametrize('orientation', range(1, 9))
def test_only_what_stays_as_it_is_is_reduced(tmp_path, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = save(tmp_path / 'photo.jpg', photo(801, 599), quality=92, exif=exif)
    assert (differences(path, 64, reducing_gap=2, exif=True) == (0, 0)) is (orientation != 1)
    assert 0 < differences(path, 64, reducing_gap=2)[0] < 0.6


@pytest.mark.parametrize('name, sides, gap', [('photo.jpg', (640, 480), 1), ('photo.jpg', (1023, 700), 2),
                                              ('photo.png', (2048, 100), 1)])  # fmt: skip
def test_nothing_is_reduced_that_is_small_or_no_jpeg(tmp_path, name, sides, gap):
    path = save(tmp_path / name, photo(*sides))
    assert_same(load(path, 512, reducing_gap=gap), in_two_steps(path, 512))


def test_reduction_keeps_enough_pixels(tmp_path):
    path = save(tmp_path / 'photo.jpg', photo(512, 384))
    assert differences(path, 64, reducing_gap=4)[0] > 0
    assert differences(path, 64, reducing_gap=4.1)[0] < differences(path, 64, reducing_gap=4)[0]
    assert differences(path, 64, reducing_gap=8) == (0, 0)


@pytest.mark.parametrize('sides', [(640, 480), (333, 500), (100, 37)])
def test_torch_resizes_like_pillow(tmp_path, sides):
    path = save(tmp_path / 'photo.png', photo(*sides))
    mean, largest = differences(path, 256, backend='torch')
    assert 0 < mean < 0.01 and largest <= 2


def test_torch_leaves_partial_pixels_to_pillow(tmp_path):
    path = save(tmp_path / 'odd.jpg', photo(801, 599))
    assert_same(load(path, 64, backend='torch', reducing_gap=2), load(path, 64, reducing_gap=2))
    path = save(tmp_path / 'even.jpg', photo(800, 600))
    both = load(path, 64, backend='torch', reducing_gap=2)['img'].astype(int)
    error = np.abs(both - load(path, 64, reducing_gap=2)['img'])
    assert 0 < error.mean() < 0.01 and error.max() <= 2


@pytest.mark.parametrize('options, message', [
    ({'size': 0}, 'size'),
    ({'size': 8, 'reducing_gap': 0.9}, 'reducing_gap'),
    ({'size': 8, 'backend': 'cv2'}, 'backend'),
])  # fmt: skip
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        LoadResizedImage(**options)


def test_resizing_twice_is_an_error(tmp_path):
    """The scale of the first time would be lost, and boxes with it."""
    results = load(save(tmp_path / 'photo.png', photo(30, 20)), 16)
    with pytest.raises(ValueError, match='resized already'):
        ResizeLongestPad(16)(results)
