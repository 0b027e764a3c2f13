"""Transforms of the image pipeline."""

from .captions import AddCaption, PackCaptions
from .crops import CropRegions, crop_image, enlarge_boxes
from .grid_regions import SampleGridRegions
from .image import LoadImage, LoadResizedImage, ResizeLongestPad
from .pack import PackRegions
from .panoptic_regions import LoadPanopticRegions, downsample_mask
from .proposals import LoadLabeledBoxes, SampleProposals
from .resize_shortest import ResizeShortestCrop

__all__ = [
    'AddCaption',
    'CropRegions',
    'LoadImage',
    'LoadLabeledBoxes',
    'LoadPanopticRegions',
    'LoadResizedImage',
    'PackCaptions',
    'PackRegions',
    'ResizeLongestPad',
    'ResizeShortestCrop',
    'SampleGridRegions',
    'SampleProposals',
    'crop_image',
    'downsample_mask',
    'enlarge_boxes',
]
