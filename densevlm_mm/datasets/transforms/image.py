"""From a file to a square RGB image."""

from __future__ import annotations

import numpy as np
from mmcv.transforms import BaseTransform
from PIL import ExifTags, Image, ImageOps

from densevlm_mm.registry import TRANSFORMS

from ..image_file import BadImageError, decoding, read_image, to_rgb


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
        if min(image.size) < self.min_side:
            message = f'is {image.width}x{image.height} px, at least {self.min_side} px a side are needed'
            raise BadImageError(f'{path}: {message}; drop it from the data set', kind='too small', path=path)
        with decoding(path):
            turned = self.exif and image.getexif().get(ExifTags.Base.Orientation, 1) != 1
            image, mode = to_rgb(ImageOps.exif_transpose(image) if turned else image, path)
        results['img'] = np.array(image)
        results['ori_shape'] = (image.height, image.width)
        if mode or turned:
            results['converted'] = tuple(filter(None, (mode, 'EXIF rotation' if turned else None)))
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
