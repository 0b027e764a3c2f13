"""Image files: which can be decoded, what is wrong with the others, and how every kind becomes RGB."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from mmengine import fileio
from PIL import Image, UnidentifiedImageError

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff')
REMEDY = 'fetch it again or drop it from the data set'

# Names under which conversions are counted; any other mode goes by its own.
_CONVERSIONS = {'1': 'bilevel', 'L': 'greyscale', 'LA': 'alpha', 'RGBA': 'alpha', 'P': 'palette', 'PA': 'palette'}


class BadImageError(ValueError):
    """An image that cannot be used; the message names the file and the remedy.

    Args:
        message: What is wrong with which file.
        kind: The same in a word or two, for counting: 'empty', 'truncated', 'unreadable', 'too large', 'too small'
            or 'value range'.
        path: The file.
    """

    def __init__(self, message: str, *, kind: str = 'unreadable', path: str = '') -> None:
        super().__init__(message)
        self.kind = kind
        self.path = path


@contextmanager
def decoding(path: str) -> Iterator[None]:
    """Turn whatever Pillow raises inside into a `BadImageError` about the file at `path`."""
    try:
        yield
    except (BadImageError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise BadImageError(f'{path}: cannot be decoded (not an image); {REMEDY}', path=path) from error
    except Exception as error:  # a damaged file may raise anything
        kind = 'unreadable'
        if isinstance(error, Image.DecompressionBombError):
            kind = 'too large'
        elif 'truncated' in str(error).lower():
            kind = 'truncated'
        raise BadImageError(f'{path}: cannot be decoded ({error}); {REMEDY}', kind=kind, path=path) from error


def open_image(path: str, location: tuple[str, int, int] | None = None) -> Image.Image:
    """Open an image with Pillow, which reads its header only; `decoding` is the place to do more with it.

    Args:
        path: File, or an address that mmengine's file clients know.
        location: Where the bytes are if not in a file of their own: a local file, their offset in it and their number.
            ``path`` then only names the image.

    Raises:
        FileNotFoundError: There is no such file.
        BadImageError: It is empty, far too large (Pillow's limit against decompression bombs) or not an image.
    """
    data = fileio.get(path) if location is None else _read_part(*location)
    if not data:
        raise BadImageError(f'{path}: the file is empty; {REMEDY}', kind='empty', path=path)
    with decoding(path):
        return Image.open(io.BytesIO(data))


def read_image(path: str, location: tuple[str, int, int] | None = None) -> Image.Image:
    """Decode an image with Pillow, whole and at once; the arguments are those of `open_image`.

    Raises:
        FileNotFoundError: There is no such file.
        BadImageError: It is empty, truncated, far too large (Pillow's limit against decompression bombs) or not an
            image.
    """
    image = open_image(path, location)
    with decoding(path):
        image.load()
    return image


def reduce_jpeg(image: Image.Image, longest: int) -> int:
    """Have an opened JPEG decoded at 1/2, 1/4 or 1/8 of its size, if its longest side keeps ``longest`` px.

    Sides are rounded up. Other formats stay as they are.

    Returns:
        What its sides are divided by: 1, 2, 4 or 8.
    """
    width, height = image.size
    drafted = image.draft(None, (longest, 1) if width >= height else (1, longest))
    return 1 if drafted is None else round(width / drafted[1][2])


def to_rgb(image: Image.Image, path: str) -> tuple[Image.Image, str | None]:
    """The image at `path`, of any mode, as 8-bit RGB; and the name of the conversion if it was another one.

    16 bits are scaled to 8; Pillow opens some such files as 32-bit integers. Alpha is dropped, without blending. CMYK
    goes the plain way of Pillow, without a colour profile.

    Raises:
        BadImageError: Its values have no known range: 32-bit integers beyond 0..65535, floats.
    """
    if image.mode == 'RGB':
        return image, None
    if image.mode.startswith(('I', 'F')):
        return Image.fromarray(_to_8_bits(image, path)).convert('RGB'), '16-bit'
    kind = _CONVERSIONS.get(image.mode, image.mode)
    if image.mode == 'P' and 'transparency' in image.info:
        image = image.convert('RGBA')  # straight to RGB gives the same colours, and a warning for every image
    return image.convert('RGB'), kind


def _to_8_bits(image: Image.Image, path: str) -> np.ndarray:
    values = np.asarray(image)
    if image.mode == 'F' or values.min() < 0 or values.max() > 65535:
        message = f'{path}: holds numbers without a known range (mode {image.mode}); convert it to 8 bits'
        raise BadImageError(message, kind='value range', path=path)
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)  # v / 257, rounded


def _read_part(file: str, offset: int, size: int) -> bytes:
    # opened for each image: that costs nothing beside decoding it, and no open file crosses into a worker
    with open(file, 'rb') as stream:
        stream.seek(offset)
        return stream.read(size)
