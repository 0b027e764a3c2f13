from __future__ import annotations

import gzip
import importlib.util
import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densevlm_mm.datasets import tar_shards
from densevlm_mm.datasets.tar_shards import index_shards, scan_shard, shard_index, write_shards

CONTENTS = {'./sa_1.jpg': b'first', './sa_2.JPG': b'second ' * 200, f'{"deep/" * 40}ü.png': b'x', './empty.jpg': b''}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv('DENSEVLM_CACHE', str(tmp_path / 'cache'))
    return tmp_path / 'cache' / 'shards'


@pytest.fixture
def shard(tmp_path) -> Path:
    """A file in the manner of SA-1B: images, annotations between them, and what else tar files hold."""
    path = tmp_path / 'sa_000000.tar'
    with tarfile.open(path, 'w') as tar:
        tar.addfile(special('./folder.jpg', tarfile.DIRTYPE))
        tar.addfile(special('./link.jpg', tarfile.SYMTYPE))
        for name, content in CONTENTS.items():
            add(tar, name, content)
            add(tar, name.rpartition('.')[0] + '.json', b'{}')
    return path


def special(name: str, kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type = kind
    return member


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def same(first, second) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_index_leads_to_the_bytes_of_every_image(shard):
    index, data = scan_shard(str(shard)), shard.read_bytes()
    assert [name.decode() for name in index.names] == [name.removeprefix('./') for name in CONTENTS]
    found = [data[offset : offset + size] for offset, size in zip(index.offsets, index.sizes, strict=True)]
    assert found == list(CONTENTS.values())


def test_index_is_kept_until_the_file_changes(shard, cache, monkeypatch):
    scanned = []
    monkeypatch.setattr(tar_shards, 'scan_shard', lambda path: scanned.append(path) or scan_shard(path))
    first = shard_index(str(shard))
    assert same(shard_index(str(shard)), first) and len(scanned) == 1
    with tarfile.open(shard, 'a') as tar:
        add(tar, 'sa_3.jpg', b'third')
    assert len(shard_index(str(shard)).names) == len(first.names) + 1 and len(scanned) == 2
    os.utime(shard, ns=(0, 0))
    shard_index(str(shard))
    assert len(scanned) == 3 == len(list(cache.iterdir()))


@pytest.mark.parametrize('content', [b'', b'PK\3\4 damaged', None])
def test_damaged_cache_is_made_again(shard, cache, content):
    index = shard_index(str(shard))
    (file,) = cache.iterdir()
    if content is None:  # of another make
        np.savez(file, names=index.names)
    else:
        file.write_bytes(content)
    assert same(shard_index(str(shard)), index)
    with np.load(file) as arrays:
        assert set(arrays) == {'names', 'offsets', 'sizes'}


def test_cache_that_cannot_be_written(shard, cache):
    cache.parent.write_text('a file where a folder should be')
    with pytest.warns(UserWarning, match='not kept .*DENSEVLM_CACHE'):
        assert same(shard_index(str(shard)), scan_shard(str(shard)))


@settings(max_examples=30)
@given(cut=st.floats(0, 1, exclude_max=True))
def test_interrupted_download_is_an_error(tmp_path_factory, cut):
    """Only the zeros at the end may be missing."""
    path = tmp_path_factory.getbasetemp() / 'cut.tar'
    with tarfile.open(path, 'w') as tar:
        for name, content in CONTENTS.items():
            add(tar, name, content)
    whole, data = scan_shard(str(path)), path.read_bytes()
    path.write_bytes(data[: int(cut * len(data))])
    try:
        assert same(scan_shard(str(path)), whole)
    except ValueError as error:
        assert str(error).startswith(f'{path}: ') and 'fetch it again' in str(error)
        assert len(data.rstrip(b'\0')) + 2 * tarfile.BLOCKSIZE > cut * len(data)


def test_damaged_header_is_an_error(shard):
    data = bytearray(shard.read_bytes())
    data[data.index(b'./sa_2.JPG')] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ValueError, match=r'sa_000000.tar: the tar file is damaged or ends in the middle'):
        scan_shard(str(shard))


@pytest.mark.parametrize('content', [b'', b'<html>404</html>', 'compressed'])
def test_other_files_are_errors(shard, content):
    shard.write_bytes(gzip.compress(shard.read_bytes()) if content == 'compressed' else content)
    with pytest.raises(ValueError, match=r'sa_000000.tar: not an uncompressed tar file .*unpack it'):
        scan_shard(str(shard))


@pytest.fixture
def images(tmp_path) -> Path:
    """Seven files that look like images, and one that does not."""
    folder = tmp_path / 'images'
    for name in ('c.jpg', 'a.png', 'sub/b.webp', 'sub/a.jpg', 'z/1.JPG', 'z/2.jpg', 'z/3.jpg', 'notes.txt'):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def test_ranks_begin_at_different_files_and_agree(images, tmp_path, monkeypatch):
    paths = list(map(str, write_shards(images, tmp_path / 'out', per_shard=2)))
    alone = [scan_shard(path) for path in paths]
    begun = []
    monkeypatch.setattr(tar_shards, '_THREADS', 1)
    monkeypatch.setattr(tar_shards, 'scan_shard', lambda path: begun.append(path) or scan_shard(path))
    monkeypatch.setattr(tar_shards, 'get_dist_info', lambda: (1, 2))
    assert all(map(same, index_shards(paths), alone))
    assert begun == [*paths[2:], *paths[:2]]
    monkeypatch.setattr(tar_shards, 'get_dist_info', lambda: (0, 2))
    assert all(map(same, index_shards(paths), alone))
    assert len(begun) == 4


def test_written_files_hold_the_images_in_order(images, tmp_path):
    paths = write_shards(images, tmp_path / 'out', per_shard=3)
    assert [path.name for path in paths] == ['sa_000000.tar', 'sa_000001.tar', 'sa_000002.tar']
    names = [[name.decode() for name in scan_shard(str(path)).names] for path in paths]
    assert names == [['a.png', 'c.jpg', 'sub/a.jpg'], ['sub/b.webp', 'z/1.JPG', 'z/2.jpg'], ['z/3.jpg']]
    with tarfile.open(paths[1]) as tar:
        assert all(tar.extractfile(member).read() == member.name.encode() for member in tar)


def test_written_files_depend_on_content_only(images, tmp_path):
    first = write_shards(images, tmp_path / 'first')
    os.utime(images / 'c.jpg', (0, 0))
    (second,) = write_shards(images, tmp_path / 'second')
    assert first[0].read_bytes() == second.read_bytes()


def test_nothing_is_overwritten_or_half_written(images, tmp_path, monkeypatch):
    (path,) = write_shards(images, tmp_path / 'out')
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match='sa_000000.tar exists'):
        write_shards(images, tmp_path / 'out')
    assert path.read_bytes() == before
    (images / 'z' / '3.jpg').unlink()
    (images / 'z' / '3.jpg').symlink_to('gone')
    with pytest.raises(FileNotFoundError):
        write_shards(images, tmp_path / 'other')
    assert list((tmp_path / 'other').iterdir()) == []


def test_tool(images, tmp_path, capsys):
    path = Path(__file__).parents[2] / 'tools' / 'dataset_converters' / 'make_shards.py'
    spec = importlib.util.spec_from_file_location('make_shards', path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    out = tmp_path / 'out'
    assert tool.main([str(images), str(out), '--per-shard', '4', '--prefix', 'my-']) == 0
    assert sorted(path.name for path in out.iterdir()) == ['my-000000.tar', 'my-000001.tar']
    assert tool.main([str(images), str(out), '--prefix', 'my-']) == 2
    assert tool.main([str(images), str(out), '--per-shard', '0']) == 2
    assert tool.main([str(tmp_path / 'cache'), str(out / 'other')]) == 2
    errors = capsys.readouterr().err
    assert (
        'exists; remove it' in errors and 'per_shard must be positive' in errors and 'no image in this folder' in errors
    )


def test_what_macos_packs_beside_images_is_no_image(tmp_path):
    with tarfile.open(tmp_path / 'mac.tar', 'w') as tar:
        for name in ('x.jpg', '._x.jpg', '__MACOSX/._y.jpg'):
            add(tar, name, b'content')
    assert scan_shard(str(tmp_path / 'mac.tar')).names.tolist() == [b'x.jpg']
