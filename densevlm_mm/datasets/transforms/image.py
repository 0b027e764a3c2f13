"""From a file to a square RGB image."""

from __future__ import annotations

import io

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine import fileio
from PIL import Image, ImageOps

from densevlm_mm.registry import TRANSFORMS

# Pillow would clip their values to 0..255 without a word.
DEEP_MODES = ('I', 'F')


def read_image(path: str) -> Image.Image:
    """Decode an image file with Pillow, whole and at once.

    Args:
        path: File, or an address that mmengine's file clients know.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is empty, truncated or not an image.
    """
    data = fileio.get(path)
    if not data:
        raise ValueError(f'{path}: the file is empty; fetch it again or drop it from the data set')
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f'{path}: cannot be decoded ({error}); fetch it again or drop it from the data set') from error
    return image


@TRANSFORMS.register_module()
class LoadImage(BaseTransform):
    """Load ``results['img_path']`` as RGB.

    Adds ``img`` ``(H, W, 3)`` uint8 RGB and ``ori_shape`` ``(H, W)``.

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
            ValueError: It is empty, truncated, not an image, too small, or has more than 8 bits per channel.
        """
        path = results['img_path']
        image = read_image(path)
        if image.mode.startswith(DEEP_MODES):
            raise ValueError(f'{path}: has more than 8 bits per channel (mode {image.mode}); convert it')
        if min(image.size) < self.min_side:
            raise ValueError(
                f'{path}: is {image.width}x{image.height} px, at least {self.min_side} px a side '
                'are needed; drop it from the data set'
            )
        if self.exif:
            image = ImageOps.exif_transpose(image)
        results['img'] = np.array(image.convert('RGB'))
        results['ori_shape'] = (image.height, image.width)
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
        if size < 1:
            raise ValueError(f'size must be positive, got {size}')
        self.size = size

    def transform(self, results: dict) -> dict:
        """Resize and pad the image."""
        height, width = results['img'].shape[:2]
        scale = self.size / max(height, width)
        resized = (max(1, round(width * scale)), max(1, round(height * scale)))
        image = Image.fromarray(results['img']).resize(resized, Image.Resampling.BICUBIC)
        padded = np.zeros((self.size, self.size, 3), np.uint8)
        padded[: resized[1], : resized[0]] = image
        results.update(img=padded, ori_img=results['img'], img_shape=(self.size, self.size), scale=scale)
        return results
