"""Distillers: models that teach a student dense features."""

from .base import RegionDistiller
from .clipself import CLIPSelf
from .declip import DeCLIP
from .densevlm import DenseVLM
from .foundation import TimmFoundationModel, VLMFoundationModel
from .regionclip import RegionCLIP

__all__ = [
    'CLIPSelf', 'DeCLIP', 'DenseVLM', 'RegionCLIP', 'RegionDistiller', 'TimmFoundationModel', 'VLMFoundationModel',
]  # fmt: skip
