"""Transforms of the image pipeline."""

from .captions import AddCaption
from .grid_regions import SampleGridRegions
from .image import LoadImage, ResizeLongestPad
from .pack import PackRegions
from .panoptic_regions import LoadPanopticRegions, downsample_mask

__all__ = [
    'AddCaption',
    'LoadImage',
    'LoadPanopticRegions',
    'PackRegions',
    'ResizeLongestPad',
    'SampleGridRegions',
    'downsample_mask',
]
