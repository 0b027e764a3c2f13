"""Images in tar files, read in place: where each one lies, and how such files are written."""

from __future__ import annotations

import hashlib
import os
import tarfile
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath
from typing import IO, NamedTuple

import numpy as np
from mmengine.dist import get_dist_info

from densevlm_mm.vlm.checkpoints import save_atomically
from densevlm_mm.vlm.text_embeddings import cache_dir

from .image_file import IMAGE_SUFFIXES

# Raise it when the same file comes to have another index.
_FORMAT = 1
_THREADS = 8  # reading headers all over a file is mostly waiting


class ShardIndex(NamedTuple):
    """Where the N images of a tar file lie, in its order; arrays, for there may be tens of millions.

    Attributes:
        names: ``(N,)`` UTF-8 bytes of fixed width.
        offsets: ``(N,)`` int64, first byte in the file.
        sizes: ``(N,)`` int64, in bytes.
    """

    names: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray


def index_shards(paths: Sequence[str]) -> list[ShardIndex]:
    """Index tar files, each once per machine: the result is kept in the cache folder until the file changes.

    Ranks begin at different files and take from the cache what others have finished, so that they share the work
    without waiting for each other.

    Raises:
        ValueError: A file is no tar file, compressed, or ends in its middle.
    """
    rank, world_size = get_dist_info()
    start = rank * len(paths) // world_size
    with ThreadPoolExecutor(_THREADS) as pool:
        indexes = list(pool.map(shard_index, [*paths[start:], *paths[:start]]))
    return indexes[len(paths) - start :] + indexes[: len(paths) - start]


def shard_index(path: str) -> ShardIndex:
    """Index of one tar file, from the cache if it holds one of a file of this path, size and time.

    Raises:
        ValueError: See `index_shards`.
    """
    stat = os.stat(path)
    key = repr((os.path.realpath(path), stat.st_size, stat.st_mtime_ns, IMAGE_SUFFIXES, _FORMAT))
    cached = cache_dir() / 'shards' / f'{hashlib.sha256(key.encode()).hexdigest()}.npz'
    try:
        with np.load(cached, allow_pickle=False) as arrays:
            return ShardIndex(**arrays)
    except Exception:  # absent, damaged, or of another make: it is made again
        index = scan_shard(path)
    try:
        save_atomically(cached, lambda file: np.savez(file, **index._asdict()))
    except OSError as error:
        warnings.warn(f'indexes of tar files are not kept ({error.strerror}); set DENSEVLM_CACHE', stacklevel=2)
    return index


def scan_shard(path: str) -> ShardIndex:
    """Index of a tar file, from its headers.

    Raises:
        ValueError: See `index_shards`.
    """
    try:
        with tarfile.open(path, 'r:') as tar:
            members = [member for member in tar if _is_image(member)]
            # a damaged header ends the iteration as the end of the archive does: that is a block of zeros
            tar.fileobj.seek(tar.offset)
            complete = tar.fileobj.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
    except tarfile.TarError as error:
        raise ValueError(f'{path}: not an uncompressed tar file ({error}); fetch it again or unpack it') from error
    if not complete:
        raise ValueError(f'{path}: the tar file is damaged or ends in the middle; fetch it again')
    names = [member.name.removeprefix('./').encode(errors='surrogateescape') for member in members]
    return ShardIndex(
        names=np.array(names, dtype=np.bytes_),
        offsets=np.array([member.offset_data for member in members], dtype=np.int64),
        sizes=np.array([member.size for member in members], dtype=np.int64),
    )


def write_shards(folder: str | Path, out: str | Path, *, per_shard: int = 1000, prefix: str = 'sa_') -> list[Path]:
    """Pack the images below a folder into tar files `prefix` 000000.tar, ..., in the order of their paths.

    The files do not depend on anything but names and contents. Each is written beside its place and renamed.

    Args:
        folder: Folder with images at any depth; members are named by their paths below it.
        out: Folder for the tar files, created if need be.
        per_shard: Images per tar file; SA-1B has about 11,000.
        prefix: Beginning of the names.

    Returns:
        The files.

    Raises:
        FileNotFoundError: The folder holds no image.
        FileExistsError: ``out`` holds such tar files.
        ValueError: ``per_shard`` is not positive.
    """
    folder, out = Path(folder), Path(out)
    if per_shard < 1:
        raise ValueError(f'per_shard must be positive, got {per_shard}')
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob('*') if _has_image_suffix(path))
    if not names:
        raise FileNotFoundError(
            f'{folder}: no image in this folder or below it (looked for {", ".join(IMAGE_SUFFIXES)})'
        )
    if old := sorted(out.glob(f'{prefix}*.tar')):
        raise FileExistsError(f'{old[0]} exists; remove it or choose another folder or prefix')
    shards = []
    for number, start in enumerate(range(0, len(names), per_shard)):
        shards.append(out / f'{prefix}{number:06}.tar')
        save_atomically(shards[-1], lambda file, part=names[start : start + per_shard]: _write_tar(file, folder, part))
    return shards


def _write_tar(file: IO[bytes], folder: Path, names: Sequence[str]) -> None:
    with tarfile.open(fileobj=file, mode='w') as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = (folder / name).stat().st_size
            with (folder / name).open('rb') as image:
                tar.addfile(member, image)


def _is_image(member: tarfile.TarInfo) -> bool:
    return member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and _has_image_suffix(member.name)


def _has_image_suffix(name: str | Path) -> bool:
    path = PurePath(name)
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith('.')  # as macOS packs them beside images
