"""What programs and scripts call."""

from densevlm_mm.vlm import load_vlm

from .check_config import ConfigError, check_config
from .command_line import add_common_arguments, load_config, vocabulary_of_words
from .distributed import close_process_group
from .host_memory import keep_freed_memory
from .inferencer import Inferencer
from .run_parts import SwapError
from .swap_backbone import swap_backbone
from .weights import load_weights, start_from

__all__ = [
    'ConfigError',
    'Inferencer',
    'SwapError',
    'add_common_arguments',
    'check_config',
    'close_process_group',
    'keep_freed_memory',
    'load_config',
    'load_vlm',
    'load_weights',
    'start_from',
    'swap_backbone',
    'vocabulary_of_words',
]
