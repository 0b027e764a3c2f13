from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.runner import Runner
from PIL import Image

from densevlm_mm.datasets import BadImageError, LoadResizedImage
from densevlm_mm.datasets.tar_shards import write_shards
from densevlm_mm.datasets.transforms import image as image_module
from densevlm_mm.datasets.transforms import image_cache
from densevlm_mm.datasets.transforms.image_cache import ImageCache


@pytest.fixture
def path(tmp_path) -> str:
    """A grey image of 30 x 20 px: it is converted."""
    noise = np.random.default_rng(0).integers(0, 256, (20, 30), np.uint8)
    Image.fromarray(noise).save(tmp_path / 'image.png')
    return str(tmp_path / 'image.png')


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / 'cache'


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """Paths of the images that are opened."""
    paths = []
    opened = image_module.open_image

    def open_image(path, location=None):
        paths.append(path)
        return opened(path, location)

    monkeypatch.setattr(image_module, 'open_image', open_image)
    return paths


def load(path: str, folder: Path | None, size: int = 16, **options) -> dict:
    return LoadResizedImage(size, cache=None if folder is None else str(folder), **options)({'img_path': path})


def assert_same(one: dict, other: dict) -> None:
    np.testing.assert_array_equal(one['img'], other['img'], strict=True)
    assert {**one, 'img': None} == {**other, 'img': None}


def entries(folder: Path) -> list[Path]:
    return [path for path in folder.rglob('*') if path.is_file()]


def test_second_time_is_the_first_without_decoding(path, folder, decoded):
    plain = load(path, None)
    assert_same(load(path, folder), plain)
    assert len(decoded) == 2
    again = load(path, folder)
    assert_same(again, plain)
    assert len(decoded) == 2 and len(entries(folder)) == 1
    assert again['converted'] == ('greyscale',) and type(again['converted'][0]) is str
    assert again['ori_shape'] == (20, 30) and type(again['ori_shape'][0]) is int


def test_image_can_be_changed_in_place(path, folder):
    """What a later transform does to it must not reach the cache."""
    load(path, folder)['img'][:] = 0
    results = load(path, folder)
    results['img'][:] = 0
    assert_same(load(path, folder), load(path, None))


def test_entry_has_three_bytes_per_pixel(path, folder):
    load(path, folder, size=300)
    assert 0 < entries(folder)[0].stat().st_size - 300 * 200 * 3 < 1000


@pytest.mark.parametrize('options', [
    {'size': 17}, {'exif': True}, {'reducing_gap': 2}, {'backend': 'torch'},
])  # fmt: skip
def test_other_recipe_is_another_entry(path, folder, options):
    load(path, folder)
    assert_same(load(path, folder, **options), load(path, None, **options))
    assert len(entries(folder)) == 2


def test_changed_file_is_read_again(path, folder):
    load(path, folder)
    Image.new('RGB', (20, 30), (9, 9, 9)).save(path)
    assert_same(load(path, folder), load(path, None))
    stat = os.stat(path)
    Image.new('RGB', (20, 30), (8, 8, 8)).save(path)
    assert os.stat(path).st_size == stat.st_size
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert_same(load(path, folder), load(path, None))
    assert len(entries(folder)) == 3


@pytest.mark.parametrize('damage', [
    lambda content: content[: len(content) // 2],
    lambda content: b'',
    lambda content: content[:400] + bytes([content[400] ^ 1]) + content[401:],
    lambda content: b'no archive' * 100,
], ids=['half', 'empty', 'one bit', 'other'])  # fmt: skip
def test_damaged_entry_is_made_again(path, folder, decoded, damage):
    plain = load(path, folder)
    (entry,) = entries(folder)
    content = entry.read_bytes()
    entry.write_bytes(damage(content))
    assert_same(load(path, folder), plain)
    assert len(decoded) == 2 and entries(folder) == [entry] and entry.read_bytes() == content


def test_full_disk_is_an_error_that_leaves_nothing(path, folder, monkeypatch):
    def write(file, image):
        file.write(b'half')
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(image_cache, '_write', write)
    with pytest.raises(OSError, match='cache: .*No space left on device.*free space'):
        load(path, folder)
    assert entries(folder) == []


def test_bad_and_missing_images_are_not_kept(tmp_path, folder):
    (tmp_path / 'bad.png').write_bytes(b'bad')
    for _ in range(2):
        with pytest.raises(BadImageError, match=r'bad.png: cannot be decoded'):
            load(str(tmp_path / 'bad.png'), folder)
        with pytest.raises(FileNotFoundError, match=r'nowhere.png: no such file'):
            load(str(tmp_path / 'nowhere.png'), folder)
    assert not folder.exists()


def test_kept_image_can_still_be_too_small(path, folder):
    load(path, folder, min_side=20)
    with pytest.raises(BadImageError, match='is 30x20 px, at least 21 px'):
        load(path, folder, min_side=21)


def test_entries_of_a_tar_file_are_told_apart(path, folder):
    """Two places in one file; and a file on its own is no part of it."""
    cache = ImageCache(folder, recipe=())
    content = Path(path).read_bytes()
    places = [None, (path, 0, len(content)), (path, 1, len(content)), (path, 0, len(content) - 1)]
    assert len({cache.entry(path, place) for place in places}) == 4


@pytest.fixture(params=['folder', 'shards'])
def dataset(request, tmp_path, monkeypatch) -> dict:
    """Eight images, as files or in tar files; the fourth is damaged."""
    monkeypatch.setenv('DENSEVLM_CACHE', str(tmp_path / 'indexes'))
    images = tmp_path / 'images'
    images.mkdir()
    generator = np.random.default_rng(0)
    for number in range(8):
        pixels = generator.integers(0, 256, (20 + number, 30, 3), np.uint8)
        Image.fromarray(pixels).save(images / f'{number}.jpg')
    (images / '3.jpg').write_bytes(b'damaged')
    if request.param == 'folder':
        return {'type': 'densevlm_mm.ImageDataset', 'data_root': str(images)}
    write_shards(images, tmp_path / 'tar', per_shard=3)
    return {'type': 'densevlm_mm.TarImageDataset', 'data_root': str(tmp_path / 'tar')}


def stream(dataset: dict, loading: list[dict], *, workers: int) -> list[tuple]:
    """What two epochs of training see."""
    pipeline = [*loading, {'type': 'densevlm_mm.SampleGridRegions'}, {'type': 'densevlm_mm.PackRegions'}]
    loader = {'batch_size': 2, 'num_workers': workers, 'sampler': {'type': 'densevlm_mm.EpochSampler'}}
    loader = Runner.build_dataloader(loader | {'dataset': dataset | {'pipeline': pipeline}}, seed=0)
    seen = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            for image, sample in zip(batch['inputs'], batch['data_samples'], strict=True):
                seen.append((sample.metainfo, sample.gt_regions.boxes, image))
    return seen


def test_training_sees_the_same_with_a_cache(dataset, folder):
    in_two_steps = [{'type': 'densevlm_mm.LoadImage'}, {'type': 'densevlm_mm.ResizeLongestPad', 'size': 32}]
    cached = [{'type': 'densevlm_mm.LoadResizedImage', 'size': 32, 'cache': str(folder)}]
    plain = stream(dataset, in_two_steps, workers=0)
    for found in (stream(dataset, cached, workers=2), stream(dataset, cached, workers=0)):
        for one, other in zip(found, plain, strict=True):
            assert one[0] == other[0]
            assert torch.equal(one[1], other[1]) and torch.equal(one[2], other[2])
    assert len(entries(folder)) == 7


def test_workers_may_want_the_same_image(path, tmp_path, folder):
    (tmp_path / 'list.txt').write_text('image.png\n' * 16)
    dataset = {'type': 'densevlm_mm.ImageDataset', 'data_root': str(tmp_path), 'ann_file': 'list.txt'}
    found = stream(dataset, [{'type': 'densevlm_mm.LoadResizedImage', 'size': 16, 'cache': str(folder)}], workers=2)
    expected = torch.from_numpy(load(path, None)['img']).permute(2, 0, 1)
    assert len(found) == 32 and all(torch.equal(image, expected) for *_, image in found)
    assert len(entries(folder)) == 1
