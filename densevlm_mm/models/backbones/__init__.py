"""Backbones for MMDetection and MMSegmentation."""

from .densevlm_backbone import DenseVLMBackbone

__all__ = ['DenseVLMBackbone']
