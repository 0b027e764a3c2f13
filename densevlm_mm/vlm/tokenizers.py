"""From text to token ids: CLIP's byte-pair encoding, or whole words for tiny models."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

Tokenizer = Callable[[Sequence[str]], Tensor]
CLIP_VOCABULARY_SIZE = 49408


class WordTokenizer:
    """One id per word of a small fixed list; 0 pads, the two highest ids start and end a text.

    Args:
        words: Lower-case words, all distinct.
        context_length: Ids per text, start and end included.
    """

    def __init__(self, words: Sequence[str], context_length: int) -> None:
        self.ids = {word: i for i, word in enumerate(words, start=1)}
        if len(self.ids) != len(words):
            raise ValueError('the words of a word tokenizer must be distinct')
        self.context_length = context_length
        self.start, self.end = len(words) + 1, len(words) + 2
        self.vocab_size = len(words) + 3

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Token ids ``(N, context_length)``, int64.

        Raises:
            ValueError: For a word that is not in the list, or a text that does not fit the context.
        """
        rows = torch.zeros(len(texts), self.context_length, dtype=torch.long)
        for row, text in zip(rows, texts, strict=True):
            words = re.findall(r'[a-z0-9-]+', text.lower())
            unknown = [w for w in words if w not in self.ids]
            if unknown or len(words) + 2 > self.context_length:
                reason = f'unknown words {unknown}' if unknown else f'more than {self.context_length - 2} words'
                raise ValueError(f'{reason} in {text!r}')
            ids = [self.start, *(self.ids[w] for w in words), self.end]
            row[: len(ids)] = torch.tensor(ids)
        return rows


def build_tokenizer(text_cfg: Mapping) -> Tokenizer | None:
    """Tokenizer of a text tower; None when its vocabulary is neither CLIP's nor listed under ``words``."""
    context_length = text_cfg.get('context_length', 77)
    if 'words' in text_cfg:
        return WordTokenizer(text_cfg['words'], context_length)
    if text_cfg.get('vocab_size', CLIP_VOCABULARY_SIZE) == CLIP_VOCABULARY_SIZE:
        return SimpleTokenizer(context_length=context_length)
    return None
