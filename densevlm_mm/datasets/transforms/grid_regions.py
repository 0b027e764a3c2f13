"""Random grids of regions for training."""

from __future__ import annotations

import torch
from mmcv.transforms import BaseTransform
from mmengine.structures import InstanceData

from densevlm_mm.registry import TRANSFORMS

from ..grids import grid_boxes, grid_choices, normalize_boxes
from .item_random import item_generator


@TRANSFORMS.register_module()
class SampleGridRegions(BaseTransform):
    """Cut the image into a grid that is drawn from :func:`grid_choices`.

    Adds ``gt_regions`` with ``boxes`` ``(N, 4)`` float32, xyxy in 0..1 of the padded input, and ``ori_boxes``, the
    same in px of the original image. The grid tiles the image, not its padding. Which one it is, say ``grid``,
    ``(rows, cols)``, and ``cells``, the N places in it, counted row by row.

    Args:
        min_split: Fewest rows and columns: 2 in DenseVLM, 1 in CLIPSelf.
        max_split: Most rows and columns.
        seed: Seed of the grids, see :func:`item_generator`.
        shuffle: Put the cells in random order, as the published code does. Nothing that averages over regions
            depends on it, so by default they come row by row.
        max_regions: Keep at most so many cells, chosen at random (CLIPSelf: 20). ``None`` keeps all.
    """

    def __init__(
        self,
        *,
        min_split: int = 2,
        max_split: int = 6,
        seed: int = 0,
        shuffle: bool = False,
        max_regions: int | None = None,
    ) -> None:
        if max_regions is not None and max_regions < 1:
            raise ValueError(f'max_regions must be positive or None, got {max_regions}')
        self.choices = grid_choices(min_split, max_split)
        self.seed = seed
        self.shuffle = shuffle
        self.max_regions = max_regions

    def transform(self, results: dict) -> dict:
        """Draw a grid; needs ``ori_shape``, ``img_shape`` and ``scale``."""
        generator = item_generator(self.seed, results)
        rows, cols = self.choices[generator.integers(len(self.choices))]
        height, width = results['ori_shape']
        boxes = grid_boxes(width, height, rows, cols)
        # Drawn in any case, so that the options change which cells are kept but not the generator's state.
        kept = generator.permutation(len(boxes))[: self.max_regions]
        if not self.shuffle:
            kept.sort()
        boxes = results['ori_boxes'] = boxes[torch.from_numpy(kept)]
        boxes = normalize_boxes(boxes, scale=results['scale'], size=results['img_shape'][0])
        results.update(gt_regions=InstanceData(boxes=boxes), grid=(rows, cols), cells=tuple(kept.tolist()))
        return results
