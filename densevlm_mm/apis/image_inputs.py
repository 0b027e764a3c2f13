"""Images as people have them: files, folders, bytes, arrays, Pillow's images."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from densevlm_mm.datasets.image_file import IMAGE_SUFFIXES, BadImageError, decoding, read_image
from densevlm_mm.datasets.transforms.image import upright_rgb

# One image, a folder of them, or several of these.
ImageInput = str | Path | bytes | np.ndarray | Image.Image
ImageInputs = ImageInput | Sequence[ImageInput]


@dataclass(frozen=True)
class ImageSource:
    """An image that has not been read yet.

    Attributes:
        content: What `read` reads.
        name: What files about it are called; differs from that of every other source of a list.
        path: Its file, or '' if it has none.
    """

    content: ImageInput
    name: str
    path: str = ''

    def read(self) -> np.ndarray:
        """The image as RGB uint8 ``(H, W, 3)``, turned as its EXIF orientation says.

        Raises:
            FileNotFoundError: There is no such file.
            BadImageError: It is no image, damaged, or far too large.
            ValueError: An array is no image.
        """
        if isinstance(self.content, np.ndarray):
            return _rgb_of_array(self.content, self.name)
        if isinstance(self.content, Image.Image):
            image = self.content
        elif isinstance(self.content, bytes):
            image = _decode(self.content, self.name)
        else:
            image = read_image(str(self.content))
        return np.array(upright_rgb(image, self.path or self.name, exif=True)[0])


def list_images(inputs: ImageInputs) -> list[ImageSource]:
    """Every image of what was given, unread.

    Args:
        inputs: A path, a folder (its image files by name, without those of subfolders), the bytes of an image file, an
            array ``(H, W, 3)`` or ``(H, W)`` uint8 (BGR, as mmcv reads images), an image of Pillow; or a sequence of
            these.

    Raises:
        FileNotFoundError: There is no such file, or no image in a folder.
        ValueError: There is nothing; or something else than these, such as an address on the net.
    """
    several = isinstance(inputs, Sequence) and not isinstance(inputs, str | bytes)
    expanded = [item for given in (inputs if several else [inputs]) for item in _expand(given)]
    if not expanded:
        raise ValueError('no image was given')
    stems = Counter(item.stem for item in expanded if isinstance(item, Path))
    names = [
        (item.stem if stems[item.stem] == 1 else item.name.replace('.', '_')) if isinstance(item, Path) else f'{i:08d}'
        for i, item in enumerate(expanded)
    ]
    taken = Counter(names)
    names = [name if taken[name] == 1 else f'{name}_{i:08d}' for i, name in enumerate(names)]
    return [
        ImageSource(item, name, str(item) if isinstance(item, Path) else '')
        for item, name in zip(expanded, names, strict=True)
    ]


def _expand(given: ImageInput) -> list[Path | bytes | np.ndarray | Image.Image]:
    if isinstance(given, bytes | np.ndarray | Image.Image):
        return [given]
    if not isinstance(given, str | Path):
        raise ValueError(f'an image is a path, bytes, an array or an image of Pillow, not {type(given).__name__}')
    if '://' in str(given):
        raise ValueError(f'{given}: nothing is fetched from the net; save the image and give its path')
    path = Path(given)
    if not path.is_dir():
        if not path.is_file():
            raise FileNotFoundError(f'{path}: there is no such image or folder')
        return [path]
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())
    if not files:
        raise FileNotFoundError(f'{path}: no image in this folder (looked for {", ".join(IMAGE_SUFFIXES)})')
    return files


def _decode(content: bytes, name: str) -> Image.Image:
    if not content:
        raise BadImageError(f'{name}: there are no bytes', kind='empty', path=name)
    with decoding(name):
        image = Image.open(io.BytesIO(content))
        image.load()
    return image


def _rgb_of_array(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise ValueError(
            f'{name}: an array must be uint8, (H, W, 3) in the order BGR or (H, W) in grey; got {array.dtype} '
            f'{array.shape}'
        )
    if not array.size:
        raise ValueError(f'{name}: the array {array.shape} has no pixels')
    return np.ascontiguousarray(array[..., ::-1]) if array.ndim == 3 else np.stack([array] * 3, axis=-1)
