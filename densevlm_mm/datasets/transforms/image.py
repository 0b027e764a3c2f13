"""From a file to a square RGB image."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from PIL import ExifTags, Image, ImageOps
from torch.nn import functional as F

from densevlm_mm.registry import TRANSFORMS

from ..image_file import BadImageError, decoding, open_image, read_image, reduce_jpeg, to_rgb
from .image_cache import ImageCache, ResizedImage


@TRANSFORMS.register_module()
class LoadImage(BaseTransform):
    """Load ``results['img_path']`` as RGB; where ``img_location`` says so, from inside a larger file (`read_image`).

    Adds ``img`` ``(H, W, 3)`` uint8 RGB and ``ori_shape`` ``(H, W)``; and, for an image that was not 8-bit RGB or was
    turned, ``converted``: the names of what was done to it.

    Args:
        exif: Turn the image as its EXIF orientation says. Published results were obtained without, with boxes
            and masks in the frame of the stored pixels.
        min_side: Shortest side in px that is accepted.
    """

    def __init__(self, *, exif: bool = False, min_side: int = 10) -> None:
        self.exif = exif
        self.min_side = min_side

    def transform(self, results: dict) -> dict:
        """Load the image.

        Raises:
            FileNotFoundError: There is no such file.
            BadImageError: It is empty, truncated, not an image, too small, too large, or of numbers without a known
                range.
        """
        path = results['img_path']
        image = read_image(path, results.get('img_location'))
        check_sides(image.size, self.min_side, path)
        image, converted = upright_rgb(image, path, exif=self.exif)
        results.update(img=np.array(image), ori_shape=(image.height, image.width))
        if converted:
            results['converted'] = converted
        return results


@TRANSFORMS.register_module()
class ResizeLongestPad(BaseTransform):
    """Resize the longest side, then pad right and bottom with zeros to a square.

    Changes ``img`` to ``(size, size, 3)`` and adds ``img_shape`` ``(size, size)`` and ``scale``; the image as it was
    stays as ``ori_img``, for crops. Both sides have the same ``scale``, though the shorter is rounded to whole pixels.
    Filtering is Pillow's bicubic.

    Args:
        size: Side of the square in px.
    """

    def __init__(self, size: int) -> None:
        self.size = check_size(size)

    def transform(self, results: dict) -> dict:
        """Resize and pad the image.

        Raises:
            ValueError: That was done to it already.
        """
        if 'scale' in results:
            raise ValueError('the image is resized already; LoadResizedImage needs no ResizeLongestPad after it')
        height, width = results['img'].shape[:2]
        fit = fit_square(width, height, self.size)
        image = Image.fromarray(results['img']).resize(fit.sides, Image.Resampling.BICUBIC)
        results.update(ori_img=results['img'], img_shape=(self.size, self.size), scale=fit.scale)
        results['img'] = pad_square(np.asarray(image), self.size)
        return results


@TRANSFORMS.register_module()
class LoadResizedImage(BaseTransform):
    """`LoadImage` and `ResizeLongestPad` in one, for pipelines that cut nothing out of the original image.

    The result is theirs, bit by bit, but there is no ``ori_img``; the image need not leave Pillow in between. Faster
    still are ``reducing_gap`` and ``backend``, which change pixels slightly, and ``cache``, which changes none;
    docs/loading.md has what they save and what they change.

    Args:
        size: Side of the square in px.
        exif: See `LoadImage`.
        min_side: See `LoadImage`.
        reducing_gap: Decode a JPEG at 1/2, 1/4 or 1/8 of its size as long as its longest side keeps so many times
            ``size`` px; at least 1. ``None`` decodes all of it. An image that EXIF turns is decoded whole in any case.
        backend: What resizes, bicubic and antialiased both: ``'pillow'``, or ``'torch'``, three times as fast. A JPEG
            that was reduced though 2, 4 or 8 does not divide its sides is left to Pillow in any case.
        cache: Folder for the resized images, see `ImageCache`. ``None`` decodes each image each time.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        size: int,
        *,
        exif: bool = False,
        min_side: int = 10,
        reducing_gap: float | None = None,
        backend: str = 'pillow',
        cache: str | None = None,
    ) -> None:
        if reducing_gap is not None and reducing_gap < 1:
            raise ValueError(f'reducing_gap must be at least 1 or None, got {reducing_gap}')
        if backend not in ('pillow', 'torch'):
            raise ValueError(f"backend must be 'pillow' or 'torch', got {backend!r}")
        self.size = check_size(size)
        self.exif = exif
        self.min_side = min_side
        self.reducing_gap = reducing_gap
        self.backend = backend
        self.cache = None if cache is None else ImageCache(cache, recipe=(size, exif, reducing_gap, backend))

    def transform(self, results: dict) -> dict:
        """Load the image, or take it from the cache.

        Raises:
            FileNotFoundError: There is no such file.
            BadImageError: See `LoadImage`.
            OSError: The image cannot be kept in the cache.
        """
        source = results['img_path'], results.get('img_location')
        image = self._load(*source) if self.cache is None else self.cache.get(*source, make=self._load)
        height, width = image.ori_shape
        check_sides((width, height), self.min_side, results['img_path'])
        results.update(
            img=pad_square(image.pixels, self.size),
            ori_shape=image.ori_shape,
            img_shape=(self.size, self.size),
            scale=fit_square(width, height, self.size).scale,
        )
        if image.converted:
            results['converted'] = image.converted
        return results

    def _load(self, path: str, location: tuple[str, int, int] | None) -> ResizedImage:
        image, reduction = open_image(path, location), 1
        with decoding(path):
            stored = image.size
            if self.reducing_gap is not None and not (self.exif and orientation(image) != 1):
                reduction = reduce_jpeg(image, math.ceil(self.reducing_gap * self.size))
            image.load()
        image, converted = upright_rgb(image, path, exif=self.exif)
        width, height = stored if reduction > 1 else image.size
        sides = fit_square(width, height, self.size).sides
        # a last row or column of reduced pixels may be there in part only, which torch knows nothing of
        box = (0, 0, width / reduction, height / reduction)
        if self.backend == 'torch' and box[2:] == image.size:
            pixels = resize_in_torch(image, sides)
        else:
            pixels = np.asarray(image.resize(sides, Image.Resampling.BICUBIC, box))
        return ResizedImage(pixels, (height, width), converted)


def orientation(image: Image.Image) -> int:
    """EXIF orientation of an image, 1 where it has none."""
    return image.getexif().get(ExifTags.Base.Orientation, 1)


def upright_rgb(image: Image.Image, path: str, *, exif: bool) -> tuple[Image.Image, tuple[str, ...]]:
    """The loaded image at ``path`` as 8-bit RGB, with ``exif`` turned as it says; and names of what was done to it.

    Raises:
        BadImageError: See `to_rgb`.
    """
    with decoding(path):
        turned = exif and orientation(image) != 1
        image, mode = to_rgb(ImageOps.exif_transpose(image) if turned else image, path)
    return image, tuple(filter(None, (mode, 'EXIF rotation' if turned else None)))


class Fit(NamedTuple):
    """How an image fits into a square: its width and height there in px, and the factor."""

    sides: tuple[int, int]
    scale: float


def fit_square(width: int, height: int, size: int) -> Fit:
    """Fit the longest side to ``size``; the shorter is rounded to whole pixels, halves to even ones."""
    scale = size / max(width, height)
    return Fit((max(1, round(width * scale)), max(1, round(height * scale))), scale)


def pad_square(pixels: np.ndarray, size: int) -> np.ndarray:
    """Pad ``(h, w, 3)`` right and bottom with zeros to ``(size, size, 3)``."""
    padded = np.zeros((size, size, 3), np.uint8)
    padded[: pixels.shape[0], : pixels.shape[1]] = pixels
    return padded


def resize_in_torch(image: Image.Image, sides: tuple[int, int]) -> np.ndarray:
    """Resize an RGB image to ``(width, height)``, bicubic and antialiased, on 8-bit integers.

    Returns:
        ``(height, width, 3)`` uint8.
    """
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    resized = F.interpolate(pixels, size=sides[::-1], mode='bicubic', antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


def check_sides(sides: tuple[int, int], min_side: int, path: str) -> None:
    """Raise a `BadImageError` if the image at ``path``, of this width and height, is too small."""
    if min(sides) < min_side:
        message = f'is {sides[0]}x{sides[1]} px, at least {min_side} px a side are needed'
        raise BadImageError(f'{path}: {message}; drop it from the data set', kind='too small', path=path)


def check_size(size: int) -> int:
    """Return it, or raise a ValueError if it is not positive."""
    if size < 1:
        raise ValueError(f'size must be positive, got {size}')
    return size
