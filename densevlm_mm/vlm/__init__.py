"""Two-tower vision-language models with dense features: torch, open_clip and timm only."""

from .checkpoint_formats import convert_checkpoint, publish_checkpoint
from .checkpoints import CheckpointError, read_meta, read_state_dict
from .describe import describe_checkpoint
from .factory import load_vlm
from .model import VLM
from .prompts import TEMPLATES
from .text_embeddings import class_embeddings, load_class_embeddings
from .vocabulary import Vocabulary, build_vocabulary

__all__ = [
    'TEMPLATES', 'VLM', 'CheckpointError', 'Vocabulary', 'build_vocabulary', 'class_embeddings', 'convert_checkpoint',
    'describe_checkpoint', 'load_class_embeddings', 'load_vlm', 'publish_checkpoint', 'read_meta', 'read_state_dict',
]  # fmt: skip
