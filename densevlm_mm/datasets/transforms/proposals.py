"""Regions from the boxes of a :class:`BoxDataset`."""

from __future__ import annotations

import torch
from mmcv.transforms import BaseTransform
from mmengine.structures import InstanceData
from torch import Tensor

from densevlm_mm.registry import TRANSFORMS

from ..grids import normalize_boxes
from .item_random import item_generator


@TRANSFORMS.register_module()
class SampleProposals(BaseTransform):
    """Draw some of an image's boxes, as CLIPSelf does with proposals.

    The drawn ones whose area is out of range are dropped. Where none is left, the region is the image's top left
    corner, a quarter of its width by a quarter of its height. Adds ``gt_regions`` with ``boxes`` ``(N, 4)`` float32,
    xyxy in 0..1 of the padded input, and ``ori_boxes``, the same in px of the original image.

    Args:
        max_regions: Boxes that are drawn.
        area_range: Smallest and largest area in px of the original image.
        seed: Seed of the draws, see :func:`item_generator`.

    Raises:
        ValueError: ``max_regions`` is not positive.
    """

    def __init__(
        self, *, max_regions: int = 20, area_range: tuple[float, float] = (8**2, 1024**2), seed: int = 0
    ) -> None:
        self.max_regions = check_max_regions(max_regions)
        self.min_area, self.max_area = area_range
        self.seed = seed

    def transform(self, results: dict) -> dict:
        """Draw boxes; needs ``ann_boxes``, ``ori_shape``, ``img_shape`` and ``scale``."""
        boxes = torch.from_numpy(results['ann_boxes'])
        drawn = item_generator(self.seed, results).permutation(len(boxes))[: self.max_regions]
        boxes = boxes[torch.from_numpy(drawn)]
        area = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
        boxes = boxes[(area >= self.min_area) & (area <= self.max_area)]
        if not len(boxes):
            height, width = results['ori_shape']
            boxes = torch.tensor([[0.0, 0.0, width / 4, height / 4]])
        return add_regions(results, boxes)


@TRANSFORMS.register_module()
class LoadLabeledBoxes(BaseTransform):
    """Take an image's first boxes with their labels, as RegionCLIP's comparison does with pseudo-labels.

    Adds ``gt_regions`` with ``boxes`` ``(N, 4)`` float32, xyxy in 0..1 of the padded input, and ``labels`` ``(N,)``
    int64; and ``ori_boxes``, the boxes in px of the original image.

    Args:
        max_regions: Boxes that are taken, in the order of the file.

    Raises:
        ValueError: ``max_regions`` is not positive.
    """

    def __init__(self, *, max_regions: int = 20) -> None:
        self.max_regions = check_max_regions(max_regions)

    def transform(self, results: dict) -> dict:
        """Take the boxes; needs ``ann_boxes``, ``ann_labels``, ``img_shape`` and ``scale``.

        Raises:
            ValueError: The boxes have no labels.
        """
        if 'ann_labels' not in results:
            raise ValueError(
                f'the boxes of {results["img_path"]} have no labels: the annotation file has no "categories"; '
                'tools/dataset_converters/make_pseudo_labels.py labels boxes'
            )
        boxes = torch.from_numpy(results['ann_boxes'])[: self.max_regions]
        results = add_regions(results, boxes)
        results['gt_regions'].labels = torch.from_numpy(results['ann_labels'])[: self.max_regions]
        return results


def add_regions(results: dict, boxes: Tensor) -> dict:
    """Make boxes (N, 4), xyxy in px of the original image, the regions of an item."""
    results['ori_boxes'] = boxes
    boxes = normalize_boxes(boxes, scale=results['scale'], size=results['img_shape'][0])
    results['gt_regions'] = InstanceData(boxes=boxes)
    return results


def check_max_regions(max_regions: int) -> int:
    """Return it, or raise a ValueError if it is not positive."""
    if max_regions < 1:
        raise ValueError(f'max_regions must be positive, got {max_regions}')
    return max_regions
