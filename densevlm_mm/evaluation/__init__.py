"""Metrics; importing this package registers them."""

from .region_accuracy import region_accuracy
from .region_metric import RegionAccuracy

__all__ = ['RegionAccuracy', 'region_accuracy']
