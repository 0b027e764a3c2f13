"""Resized images on disk, for the epochs after the first."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import PIL
import torch

from densevlm_mm.vlm.checkpoints import save_atomically


class ResizedImage(NamedTuple):
    """An image at the size that a model sees, and what it was.

    Attributes:
        pixels: ``(h, w, 3)`` uint8 RGB, without padding.
        ori_shape: ``(H, W)`` of the original.
        converted: Names of what was done to make it 8-bit RGB.
    """

    pixels: np.ndarray
    ori_shape: tuple[int, int]
    converted: tuple[str, ...]


class ImageCache:
    """Folder of resized images, one uncompressed ``.npz`` each: ``3 h w`` bytes, 590 kB at 512 x 384 px.

    An entry belongs to a file of a certain path, size and time of change, and in a tar file to a place in it; to the
    recipe; and to the versions of the libraries that decode and resize. Where one of them changes, the image is made
    anew and the old entry stays behind: to free its space, remove the folder. Processes may share a folder, for
    entries appear whole or not at all; a damaged one is made anew.

    Args:
        folder: The folder, on a mounted disk; made when the first image is kept.
        recipe: What else decides the pixels.
    """

    def __init__(self, folder: str | Path, *, recipe: tuple) -> None:
        self.folder = Path(folder)
        self.recipe = (*recipe, PIL.__version__, torch.__version__)

    def get(
        self,
        path: str,
        location: tuple[str, int, int] | None,
        *,
        make: Callable[[str, tuple[str, int, int] | None], ResizedImage],
    ) -> ResizedImage:
        """The image, from the cache if it has it.

        Args:
            path: Its file.
            location: Where it lies if inside a larger file, see `read_image`.
            make: Makes it of the two; what this raises is passed on, and nothing is kept.

        Raises:
            FileNotFoundError: There is no such file on a mounted disk.
            OSError: It cannot be kept: the disk is full, for example.
        """
        entry = self.entry(path, location)
        try:
            return _read(entry)
        except Exception:  # absent, damaged, or of another make
            image = make(path, location)
        try:
            save_atomically(entry, lambda file: _write(file, image))
        except OSError as error:
            raise OSError(
                f'{self.folder}: a resized image cannot be kept there ({error.strerror}); '
                'free space, give another folder as cache, or do without it'
            ) from error
        return image

    def entry(self, path: str, location: tuple[str, int, int] | None = None) -> Path:
        """File of an image in the cache, whether it is there or not.

        Raises:
            FileNotFoundError: There is no such image on a mounted disk.
        """
        file, *place = (path,) if location is None else location
        try:
            stat = os.stat(file)
        except FileNotFoundError as error:
            raise FileNotFoundError(f'{file}: no such file on a mounted disk, where a cache needs it') from error
        key = repr((os.path.abspath(file), stat.st_size, stat.st_mtime_ns, place, self.recipe))
        name = hashlib.sha256(key.encode(errors='surrogateescape')).hexdigest()
        return self.folder / name[:2] / f'{name}.npz'


def _read(entry: Path) -> ResizedImage:
    with np.load(entry, allow_pickle=False) as arrays:
        return ResizedImage(arrays['pixels'], tuple(arrays['ori_shape'].tolist()), tuple(arrays['converted'].tolist()))


def _write(file: IO[bytes], image: ResizedImage) -> None:
    converted = np.array(image.converted, dtype=np.str_)
    np.savez(file, pixels=image.pixels, ori_shape=np.array(image.ori_shape), converted=converted)
