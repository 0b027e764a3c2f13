"""Captions of the mini world and the words they are made of.

A caption names every thing, but a stuff region only now and then: an image-text model trained on such
captions sees things everywhere, which is the foreground bias of CLIP.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .classes import STUFF, THINGS

# "a photo of a car and a star and a cup on grass and sand": at most five segments share an image, and three
# things on two regions take the most words. With a start and an end token that makes 17 tokens.
MAX_CAPTION_WORDS = 15


def caption(things: Sequence[str], stuff: Sequence[str] = ()) -> str:
    """The sentence that names at least one thing and any number of stuff regions, in the order given.

    Raises:
        ValueError: There is no thing to name.
    """
    if not things:
        raise ValueError('a caption needs at least one thing to name')
    sentence = 'a photo of ' + ' and '.join(f'a {name}' for name in things)
    return f'{sentence} on {" and ".join(stuff)}' if stuff else sentence


def draw_captions(
    rng: np.random.Generator,
    things: Sequence[str],
    stuff: Sequence[str],
    *,
    count: int,
    stuff_mention: float,
) -> list[str]:
    """Draw captions with all things, shuffled, and each stuff region with probability ``stuff_mention``."""
    captions = []
    for _ in range(count):
        named = [things[index] for index in rng.permutation(len(things))]
        mentioned = [stuff[index] for index in np.flatnonzero(rng.random(len(stuff)) < stuff_mention)]
        captions.append(caption(named, mentioned))
    return captions


def miniworld_words() -> list[str]:
    """Every word of the captions and of prompts like ``'a photo of a {}.'``, sorted, without punctuation."""
    return sorted({'a', 'photo', 'of', 'and', 'on', *THINGS, *STUFF})
