"""Data sets, sampler and transforms; importing this package registers them."""

from .box_dataset import BoxDataset, read_category_names
from .caption_dataset import CaptionDataset
from .grids import grid_boxes, grid_choices
from .image_dataset import ImageDataset
from .image_file import BadImageError
from .panoptic_region_dataset import PanopticRegionDataset
from .samplers import EpochSampler
from .tar_image_dataset import TarImageDataset
from .transforms import (
    AddCaption,
    CropRegions,
    LoadImage,
    LoadLabeledBoxes,
    LoadPanopticRegions,
    LoadResizedImage,
    PackCaptions,
    PackRegions,
    ResizeLongestPad,
    ResizeShortestCrop,
    SampleGridRegions,
    SampleProposals,
)

__all__ = [
    'AddCaption',
    'BadImageError',
    'BoxDataset',
    'CaptionDataset',
    'CropRegions',
    'EpochSampler',
    'ImageDataset',
    'LoadImage',
    'LoadLabeledBoxes',
    'LoadPanopticRegions',
    'LoadResizedImage',
    'PackCaptions',
    'PackRegions',
    'PanopticRegionDataset',
    'ResizeLongestPad',
    'ResizeShortestCrop',
    'SampleGridRegions',
    'SampleProposals',
    'TarImageDataset',
    'grid_boxes',
    'grid_choices',
    'read_category_names',
]
