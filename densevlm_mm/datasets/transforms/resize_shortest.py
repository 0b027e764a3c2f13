"""The input that CLIPs are pre-trained on: the middle of the image."""

from __future__ import annotations

import numpy as np
from mmcv.transforms import BaseTransform
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop, resize

from densevlm_mm.registry import TRANSFORMS


@TRANSFORMS.register_module()
class ResizeShortestCrop(BaseTransform):
    """Resize the shortest side, then cut out the square in the middle, as open_clip does before `encode_image`.

    Changes ``img`` to ``(size, size, 3)`` and adds ``img_shape`` ``(size, size)``. Filtering is Pillow's bicubic.

    Args:
        size: Side of the square in px.

    Raises:
        ValueError: It is not positive.
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f'size must be positive, got {size}')
        self.size = size

    def transform(self, results: dict) -> dict:
        """Resize and cut the image."""
        image = resize(Image.fromarray(results['img']), self.size, InterpolationMode.BICUBIC)
        results.update(img=np.array(center_crop(image, self.size)), img_shape=(self.size, self.size))
        return results
