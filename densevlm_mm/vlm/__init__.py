"""Two-tower vision-language models with dense features: torch, open_clip and timm only."""

from .checkpoints import CheckpointError, read_state_dict
from .factory import load_vlm
from .model import VLM
from .prompts import TEMPLATES
from .text_embeddings import class_embeddings, load_class_embeddings
from .vocabulary import Vocabulary, build_vocabulary

__all__ = [
    'TEMPLATES', 'VLM', 'CheckpointError', 'Vocabulary', 'build_vocabulary', 'class_embeddings',
    'load_class_embeddings', 'load_vlm', 'read_state_dict',
]  # fmt: skip
