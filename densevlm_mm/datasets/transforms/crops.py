"""Regions cut out of the original image, for image-level embeddings of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from PIL import Image
from torch import Tensor

from densevlm_mm.registry import TRANSFORMS


def enlarge_boxes(boxes: Tensor, factor: float, width: int, height: int) -> Tensor:
    """Scale boxes around their centres, then clip them to the image.

    Args:
        boxes: ``(N, 4)`` xyxy, px.
        factor: Factor on both sides.
        width: Width of the image in px.
        height: Height of the image in px.

    Returns:
        ``(N, 4)`` xyxy, px.
    """
    centre, half = (boxes[:, 2:] + boxes[:, :2]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2 * factor
    limit = boxes.new_tensor([width, height, width, height])
    return torch.cat([centre - half, centre + half], dim=1).clamp(min=0).minimum(limit)


def crop_image(image: np.ndarray, box: Sequence[float], size: int) -> np.ndarray:
    """Cut a box out and fit it into a square: longest side to ``size``, bicubic, zeros around the middle.

    Small crops are enlarged. Corners are rounded to whole pixels, halves to even ones, as Pillow does it.

    Args:
        image: ``(H, W, 3)`` uint8.
        box: Corners xyxy in px. What lies outside the image is black; a box without area becomes one pixel wide.
        size: Side of the square in px.

    Returns:
        ``(size, size, 3)`` uint8.
    """
    left, top, right, bottom = (round(corner) for corner in box)
    crop = Image.fromarray(image).crop((left, top, max(right, left + 1), max(bottom, top + 1)))
    scale = size / max(crop.size)
    width, height = (max(1, round(side * scale)) for side in crop.size)
    x, y = (size - width) // 2, (size - height) // 2
    square = np.zeros((size, size, 3), np.uint8)
    square[y : y + height, x : x + width] = crop.resize((width, height), Image.Resampling.BICUBIC)
    return square


@TRANSFORMS.register_module()
class CropRegions(BaseTransform):
    """Add ``crops`` ``(N, 3, size, size)`` uint8 RGB: what `crop_image` makes of each of ``ori_boxes``.

    Args:
        size: Side of the crops in px: the native input size of the model that embeds them.
        enlarge: Factor by which boxes grow around their centres first, clipped to the image: 1.5 for proposals and in
            evaluation. Regions that are known to be stuff (``gt_regions.is_thing``) keep their boxes.
    """

    def __init__(self, size: int, *, enlarge: float = 1.0) -> None:
        if size < 1 or enlarge <= 0:
            raise ValueError(f'size and enlarge must be positive, got {size=} and {enlarge=}')
        self.size = size
        self.enlarge = enlarge

    def transform(self, results: dict) -> dict:
        """Cut the crops; needs ``ori_img``, ``ori_boxes`` and ``gt_regions``.

        Raises:
            ValueError: The pipeline did not keep the original image.
        """
        if 'ori_img' not in results:
            raise ValueError('crops need the original image: load with LoadImage and ResizeLongestPad')
        image, boxes = results['ori_img'], results['ori_boxes']
        height, width = image.shape[:2]
        if self.enlarge != 1:
            larger = enlarge_boxes(boxes, self.enlarge, width, height)
            is_thing = results['gt_regions'].get('is_thing', torch.ones(len(boxes), dtype=torch.bool))
            boxes = torch.where(is_thing[:, None], larger, boxes)
        crops = np.zeros((len(boxes), self.size, self.size, 3), np.uint8)
        for number, box in enumerate(boxes.tolist()):
            crops[number] = crop_image(image, box, self.size)
        results['crops'] = torch.from_numpy(crops).permute(0, 3, 1, 2).contiguous()
        return results
