"""Metrics; importing this package registers them."""

from .caption_retrieval import CaptionRetrieval, recall_at_k
from .confusion import Confusion
from .region_accuracy import region_accuracy
from .region_metric import RegionAccuracy

__all__ = ['CaptionRetrieval', 'Confusion', 'RegionAccuracy', 'recall_at_k', 'region_accuracy']
