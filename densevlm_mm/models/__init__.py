"""Models of mmengine's contract: region classifiers, distillers with their losses, backbones."""

from .backbones import DenseVLMBackbone
from .clip_pretrainer import CLIPPretrainer
from .distillers import DenseVLM, RegionDistiller
from .losses import DecoupledAlignmentLoss
from .region_classifier import RegionClassifier, RegionModel

__all__ = [
    'CLIPPretrainer', 'DecoupledAlignmentLoss', 'DenseVLM', 'DenseVLMBackbone', 'RegionClassifier', 'RegionDistiller',
    'RegionModel',
]  # fmt: skip
