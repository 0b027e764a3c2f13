"""CAT-Seg: open-vocabulary segmentation by aggregating the cosines of image and text."""

from .aggregator import CATSegAggregator
from .cat_seg import CATSeg
from .reference_checkpoints import convert_catseg_checkpoint

__all__ = ['CATSeg', 'CATSegAggregator', 'convert_catseg_checkpoint']
