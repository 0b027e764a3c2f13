"""Distillers: models that teach a student dense features."""

from .base import RegionDistiller
from .densevlm import DenseVLM

__all__ = ['DenseVLM', 'RegionDistiller']
