"""Data sets, sampler and transforms; importing this package registers them."""

from .grids import grid_boxes, grid_choices
from .image_dataset import ImageDataset
from .panoptic_region_dataset import PanopticRegionDataset
from .samplers import EpochSampler
from .transforms import (
    AddCaption,
    LoadImage,
    LoadPanopticRegions,
    PackRegions,
    ResizeLongestPad,
    SampleGridRegions,
)

__all__ = [
    'AddCaption',
    'EpochSampler',
    'ImageDataset',
    'LoadImage',
    'LoadPanopticRegions',
    'PackRegions',
    'PanopticRegionDataset',
    'ResizeLongestPad',
    'SampleGridRegions',
    'grid_boxes',
    'grid_choices',
]
