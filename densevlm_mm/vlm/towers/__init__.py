"""Vision towers, one family per file."""

from .base import CLIP_MEAN, CLIP_STD, TowerOutput, VisionTower, to_map
from .convnext import ConvNeXtTower
from .eva import EvaTower
from .openai import OpenAITower
from .resnet import ResNetTower
from .timm_vit import TimmViTTower
from .transformer import TransformerTower

__all__ = [
    'CLIP_MEAN', 'CLIP_STD', 'ConvNeXtTower', 'EvaTower', 'OpenAITower', 'ResNetTower', 'TimmViTTower', 'TowerOutput',
    'TransformerTower', 'VisionTower', 'to_map',
]  # fmt: skip
