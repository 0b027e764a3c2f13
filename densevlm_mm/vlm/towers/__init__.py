"""Vision towers, one family per file."""

from .base import CLIP_MEAN, CLIP_STD, TowerOutput, VisionTower, to_map
from .eva import EvaTower
from .openai import OpenAITower

__all__ = ['CLIP_MEAN', 'CLIP_STD', 'EvaTower', 'OpenAITower', 'TowerOutput', 'VisionTower', 'to_map']
