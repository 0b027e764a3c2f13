"""From text to token ids: CLIP's byte-pair encoding, Hugging Face's tokenizers, or whole words for tiny models."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
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


class HubTokenizer:
    """A Hugging Face tokenizer (SigLIP's, CLIPA's), opened at its first use: building a model fetches nothing.

    Args:
        name: Repository on the Hugging Face hub, or a folder with a copy of it.
        context_length: Ids per text.
        mode: open_clip's ``tokenizer_mode``.
        options: open_clip's ``tokenizer_kwargs``, such as how to clean the text.
    """

    def __init__(
        self, name: str, context_length: int, *, mode: str | None = None, options: Mapping[str, Any] | None = None
    ) -> None:
        self.name = name
        self.context_length = context_length
        self.mode = mode
        self.options = dict(options or {})

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Token ids ``(N, context_length)``, int64.

        Raises:
            RuntimeError: If the transformers package or the tokenizer's files are missing.
        """
        return self._opened(list(texts))

    @cached_property
    def _opened(self) -> HFTokenizer:
        try:
            return HFTokenizer(self.name, context_length=self.context_length, tokenizer_mode=self.mode, **self.options)
        except ImportError as error:
            raise RuntimeError(
                f'the tokenizer {self.name!r} needs a package that is not installed ({error}): pip install transformers'
            ) from error
        except (OSError, ValueError) as error:
            raise RuntimeError(
                f'the tokenizer {self.name!r} is neither a folder nor in the Hugging Face cache: run once with a '
                'network, or set text_cfg.hf_tokenizer_name to a folder with its files'
            ) from error


def build_tokenizer(text_cfg: Mapping) -> Tokenizer | None:
    """Tokenizer of a text tower; None when its vocabulary is neither CLIP's, nor named, nor listed under ``words``."""
    context_length = text_cfg.get('context_length', 77)
    if 'words' in text_cfg:
        return WordTokenizer(text_cfg['words'], context_length)
    if text_cfg.get('hf_tokenizer_name'):
        return HubTokenizer(
            text_cfg['hf_tokenizer_name'],
            context_length,
            mode=text_cfg.get('tokenizer_mode'),
            options=text_cfg.get('tokenizer_kwargs'),
        )
    if text_cfg.get('vocab_size', CLIP_VOCABULARY_SIZE) == CLIP_VOCABULARY_SIZE:
        return SimpleTokenizer(context_length=context_length)
    return None
