"""Labelled boxes and masks from a panoptic map."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from mmcv.transforms import BaseTransform
from mmengine.structures import InstanceData
from torch import Tensor

from densevlm_mm.registry import TRANSFORMS

from ..grids import normalize_boxes
from .crops import CropRegions
from .image import read_image

# How much context the published protocol gives the crop of a thing; one of stuff gets none.
THING_CONTEXT = 1.5


def downsample_mask(mask: Tensor, grid_size: int) -> Tensor:
    """Mask at the resolution of the tokens.

    The published protocol resizes the longest side to the grid by bicubic interpolation **without**
    antialiasing and keeps what is above zero. That samples the mask rather than averaging it: a segment
    thinner than a token may vanish. Averaging gives other masks and other numbers.

    Args:
        mask: ``(H, W)`` bool, in pixels of the original image.
        grid_size: Tokens along a side of the padded input.

    Returns:
        ``(grid_size, grid_size)`` float32 of 0 and 1, padded right and bottom with 0.
    """
    height, width = mask.shape
    scale = grid_size / max(height, width)
    rows, cols = max(1, round(height * scale)), max(1, round(width * scale))
    small = F.interpolate(mask[None, None].float(), size=(rows, cols), mode='bicubic', align_corners=False)
    return F.pad((small[0, 0] > 0).float(), (0, grid_size - cols, 0, grid_size - rows))


def mask_bbox(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Box xywh of a non-empty ``(H, W)`` mask, from its first to its last pixel *index*.

    So the published protocol has it: width and height are one less than the number of pixels.
    """
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1] - columns[0]), int(rows[-1] - rows[0])


def read_segment_map(path: str) -> np.ndarray:
    """Segment ids ``(H, W)`` int32 of a COCO-panoptic map, R + 256 G + 256^2 B.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be decoded, or is no RGB image.
    """
    image = read_image(path)
    if image.mode != 'RGB':
        raise ValueError(f'{path}: is no RGB image but {image.mode}; a COCO-panoptic map is needed')
    red, green, blue = np.moveaxis(np.asarray(image, dtype=np.int32), -1, 0)
    return red + 256 * green + 256**2 * blue


@TRANSFORMS.register_module()
class LoadPanopticRegions(BaseTransform):
    """Regions of a :class:`PanopticRegionDataset` item, by the evaluation protocol of CLIPSelf and DenseVLM.

    A thing's box is its annotation's, a stuff segment's the bounding box of its pixels. Adds ``gt_regions``
    with ``boxes`` ``(N, 4)`` float32 xyxy in 0..1 of the padded input, ``masks`` ``(N, h, w)`` float32 of 0
    and 1 at token resolution, ``labels`` ``(N,)`` int64 and ``is_thing`` ``(N,)`` bool; N may be 0. Also adds
    ``ori_boxes`` ``(N, 4)`` float32, the boxes xyxy in px of the original image.

    Args:
        patch_size: Pixels per token of the model that is evaluated.
        crop_size: Also cut the regions out, for image-level classification: adds ``crops`` ``(N, 3, crop_size,
            crop_size)`` uint8 RGB, see :class:`CropRegions`. The protocol takes the native input size of the model.
            ``None`` saves the time.
        area_range: Smallest and largest box area in px of the original image.
        max_regions: Segments looked at per image, in the order of the file.

    Raises:
        ValueError: A size is not positive.
    """

    def __init__(
        self,
        *,
        patch_size: int = 16,
        crop_size: int | None = None,
        area_range: tuple[float, float] = (8**2, 1024**2),
        max_regions: int = 100,
    ) -> None:
        if patch_size < 1:
            raise ValueError(f'patch_size must be positive, got {patch_size}')
        self.patch_size = patch_size
        self.crop = None if crop_size is None else CropRegions(crop_size, enlarge=THING_CONTEXT)
        self.min_area, self.max_area = area_range
        self.max_regions = max_regions

    def transform(self, results: dict) -> dict:
        """Load the regions; needs ``ori_shape``, ``img_shape`` and ``scale``, and for crops ``ori_img``.

        Raises:
            FileNotFoundError: The panoptic map is missing.
            ValueError: It cannot be decoded, or disagrees with the image or with the annotation file; or the image is
                smaller than a patch.
        """
        segments = results['segments_info'][: self.max_regions]
        segment_map = self._load_map(results) if segments else None
        kept, boxes, masks = [], [], []
        for segment in segments:
            mask = segment_map == segment['id']
            if not mask.any():
                raise ValueError(
                    f'{results["seg_map_path"]}: has no pixel of segment {segment["id"]}, which '
                    'the annotation file lists; both must be of the same release'
                )
            x, y, width, height = segment['bbox'] if segment['is_thing'] else mask_bbox(mask)
            if self.min_area <= width * height <= self.max_area:
                kept.append(segment)
                boxes.append((x, y, x + width, y + height))
                masks.append(downsample_mask(torch.from_numpy(mask), self._grid_size(results)))
        results['ori_boxes'] = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        results['gt_regions'] = self._regions(results, kept, masks)
        return results if self.crop is None else self.crop(results)

    def _grid_size(self, results: dict) -> int:
        size = results['img_shape'][0]
        if size < self.patch_size:
            raise ValueError(f'images of {size} px are smaller than a patch of {self.patch_size} px; enlarge them')
        return size // self.patch_size

    def _regions(self, results: dict, segments: list[dict], masks: list[Tensor]) -> InstanceData:
        grid_size = self._grid_size(results)
        return InstanceData(
            boxes=normalize_boxes(results['ori_boxes'], scale=results['scale'], size=results['img_shape'][0]),
            masks=torch.stack(masks) if masks else torch.zeros(0, grid_size, grid_size),
            labels=torch.tensor([segment['label'] for segment in segments], dtype=torch.int64),
            is_thing=torch.tensor([segment['is_thing'] for segment in segments], dtype=torch.bool),
        )

    @staticmethod
    def _load_map(results: dict) -> np.ndarray:
        path = results['seg_map_path']
        segment_map = read_segment_map(path)
        if segment_map.shape != tuple(results['ori_shape']):
            height, width = results['ori_shape']
            raise ValueError(
                f'{path}: is {segment_map.shape[1]}x{segment_map.shape[0]} px, but its image {results["img_path"]} '
                f'is {width}x{height} px; both must be of the same release'
            )
        return segment_map
