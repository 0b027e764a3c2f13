"""The mini world: a generated data set in COCO's file formats on which tiny CLIPs learn within minutes.

Things are told apart by their shape, stuff by its texture; colour is only a weak cue. Every image comes with
exact instance and panoptic maps and with captions that name all its things but rarely its stuff, which is
where the foreground bias of image-text models comes from.
"""

from .captions import MAX_CAPTION_WORDS, caption, miniworld_words
from .classes import CATEGORIES, STUFF, THINGS, Category
from .generate import GENERATOR_VERSION, World, generate_miniworld
from .open_vocabulary import NOVEL_THINGS, open_vocabulary, open_vocabulary_files
from .scene import Scene, Segment, render_scene

__all__ = [
    'CATEGORIES',
    'GENERATOR_VERSION',
    'MAX_CAPTION_WORDS',
    'NOVEL_THINGS',
    'STUFF',
    'THINGS',
    'Category',
    'Scene',
    'Segment',
    'World',
    'caption',
    'generate_miniworld',
    'miniworld_words',
    'open_vocabulary',
    'open_vocabulary_files',
    'render_scene',
]
