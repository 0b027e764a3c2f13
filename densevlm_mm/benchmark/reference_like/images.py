"""Training items as finished fp32 tensors, with a crop of every box."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.functional import normalize, to_tensor

from densevlm_mm.datasets.grids import grid_boxes, grid_choices, normalize_boxes
from densevlm_mm.datasets.transforms.crops import crop_image
from densevlm_mm.datasets.transforms.item_random import item_generator
from densevlm_mm.vlm.towers import CLIP_MEAN, CLIP_STD

MAX_BOXES = 36


class CropGridDataset(Dataset):
    """Images cut into random grids.

    The grid of item ``(epoch, index)`` is the one that `SampleGridRegions` draws, its cells in random order.

    Args:
        paths: Image files.
        size: Side of the padded input in px.
        crop_size: Side of the crops in px.
    """

    def __init__(self, paths: Sequence[str], *, size: int, crop_size: int = 224) -> None:
        self.paths = list(paths)
        self.size = size
        self.crop_size = crop_size
        self.choices = grid_choices()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """Item of ``(epoch, index)``.

        Returns:
            Image ``(3, size, size)``; boxes ``(36, 5)``, xyxy in 0..1 and a flag of the real ones; and crops ``(36, 3,
            crop_size, crop_size)``. All fp32, pixels normalised.
        """
        epoch, index = item
        image = Image.open(self.paths[index]).convert('RGB')
        boxes = self._grid(image.size, epoch, index)
        scale = self.size / max(image.size)
        template = torch.zeros(MAX_BOXES, 5)
        template[: len(boxes), :4] = normalize_boxes(boxes, scale=scale, size=self.size)
        template[: len(boxes), 4] = 1
        crops = torch.zeros(MAX_BOXES, 3, self.crop_size, self.crop_size)
        pixels = np.array(image)
        for number, box in enumerate(boxes.tolist()):
            crops[number] = _finish(crop_image(pixels, box, self.crop_size))
        return _finish(self._resize(image, scale)), template, crops

    def _grid(self, size: tuple[int, int], epoch: int, index: int) -> Tensor:
        generator = item_generator(0, {'epoch': epoch, 'sample_idx': index})
        rows, cols = self.choices[generator.integers(len(self.choices))]
        boxes = grid_boxes(*size, rows, cols)
        return boxes[torch.from_numpy(generator.permutation(len(boxes)))]

    def _resize(self, image: Image.Image, scale: float) -> Image.Image:
        resized = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BICUBIC)
        padded = Image.new('RGB', (self.size, self.size))
        padded.paste(resized)
        return padded


def _finish(pixels: Image.Image | np.ndarray) -> Tensor:
    return normalize(to_tensor(pixels), CLIP_MEAN, CLIP_STD)
