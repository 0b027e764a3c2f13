"""Models of mmengine's contract: for evaluation, distillers with their losses, backbones."""

from .backbones import DenseVLMBackbone
from .clip_pretrainer import CLIPPretrainer
from .distillers import CLIPSelf, DeCLIP, DenseVLM, RegionCLIP, RegionDistiller, TimmFoundationModel, VLMFoundationModel
from .image_text_encoder import ImageTextEncoder
from .losses import CorrelationLoss, CosineLoss, DecoupledAlignmentLoss, FederatedBCELoss
from .preprocessor import VLMPreprocessor
from .region_classifier import RegionClassifier, RegionModel
from .sharded import ShardedDataParallel
from .vlm_model import VLMModel

__all__ = [
    'CLIPPretrainer', 'CLIPSelf', 'CorrelationLoss', 'CosineLoss', 'DeCLIP', 'DecoupledAlignmentLoss', 'DenseVLM',
    'DenseVLMBackbone', 'FederatedBCELoss', 'ImageTextEncoder', 'RegionCLIP', 'RegionClassifier', 'RegionDistiller',
    'RegionModel', 'ShardedDataParallel', 'TimmFoundationModel', 'VLMFoundationModel', 'VLMModel', 'VLMPreprocessor',
]  # fmt: skip
