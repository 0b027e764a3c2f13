from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace

import open_clip
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from densevlm_mm.vlm import VLM
from densevlm_mm.vlm.tokenizers import WordTokenizer, build_tokenizer

WORDS = ['a', 'cat', 'dog', 'wall-tile']


def test_clip_s_own_is_open_clip_s():
    tokenizer = build_tokenizer({'context_length': 77, 'vocab_size': 49408})
    texts = ['a photo of a cat.', 'CUP, cups', 'wall-other-merged', '', 'café ☕', 'long ' * 100]
    assert torch.equal(tokenizer(texts), open_clip.get_tokenizer('ViT-B-16')(texts))


def test_context_length():
    assert build_tokenizer({'context_length': 8})(['a photo of a cat']).shape == (1, 8)


def test_another_vocabulary_has_no_tokenizer(tiny_arch):
    assert build_tokenizer(tiny_arch('eva')['text_cfg']) is None
    with pytest.raises(RuntimeError, match=r'set text_cfg.words or vlm.tokenizer'):
        VLM(tiny_arch('eva')).tokenize(['a cat'])


def test_a_tokenizer_can_be_given(tiny_arch):
    vlm = VLM(tiny_arch('eva'))
    vlm.tokenizer = WordTokenizer(WORDS, 16)
    assert vlm.encode_text(vlm.tokenize(('a cat', 'a dog'))).shape == (2, 48)


def test_word_ids():
    tokens = WordTokenizer(WORDS, 6)(['A cat, a dog.', 'wall-tile', ''])
    assert tokens.tolist() == [[5, 1, 2, 1, 3, 6], [5, 4, 6, 0, 0, 0], [5, 6, 0, 0, 0, 0]]
    assert tokens.dtype == torch.int64


@given(st.lists(st.sampled_from(WORDS), max_size=4))
def test_texts_of_known_words_are_told_apart_and_end_at_the_highest_id(words):
    """CLIP's text towers pool at the position of the highest id."""
    tokenizer = WordTokenizer(WORDS, 6)
    (row,) = tokenizer([' '.join(words)])
    assert [WORDS[i - 1] for i in row[1 : len(words) + 1]] == words
    assert row.argmax() == len(words) + 1
    assert row.max() == tokenizer.vocab_size - 1


def test_unusable_texts():
    tokenizer = WordTokenizer(WORDS, 4)
    with pytest.raises(ValueError, match=r"unknown words \['bird', 'fish'\] in 'a bird, fish'"):
        tokenizer(['a cat', 'a bird, fish'])
    with pytest.raises(ValueError, match="more than 2 words in 'a cat dog'"):
        tokenizer(['a cat dog'])


def test_words_must_be_distinct():
    with pytest.raises(ValueError, match='must be distinct'):
        WordTokenizer(['cat', 'cat'], 4)


# --- Hugging Face -----------------------------------------------------------------------------------------------------

SIGLIP = {'context_length': 4, 'vocab_size': 32000, 'hf_tokenizer_name': 'timm/ViT-B-16-SigLIP'}


class FakeTransformers(ModuleType):
    """Stands for the transformers package: every text becomes its letters' places in the alphabet."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__('transformers')
        self.opened: list[str] = []
        self.error = error
        self.AutoTokenizer = self

    def from_pretrained(self, name: str, **kwargs: object) -> Callable:
        self.opened.append(name)
        if self.error is not None:
            raise self.error
        return self.encode

    @staticmethod
    def encode(texts: list[str], max_length: int, **kwargs: object) -> SimpleNamespace:
        rows = [[ord(letter) - 96 for letter in text][:max_length] for text in texts]
        return SimpleNamespace(input_ids=torch.tensor([row + [0] * (max_length - len(row)) for row in rows]))


def test_a_hub_tokenizer_opens_at_its_first_use(monkeypatch):
    transformers = FakeTransformers()
    monkeypatch.setitem(sys.modules, 'transformers', transformers)
    tokenizer = build_tokenizer({**SIGLIP, 'tokenizer_kwargs': {'clean': 'canonicalize'}})
    assert transformers.opened == []
    assert tokenizer(['A-b!', 'cabac']).tolist() == [[1, 2, 0, 0], [3, 1, 2, 1]]
    tokenizer(['c'])
    assert transformers.opened == ['timm/ViT-B-16-SigLIP']


def test_without_the_transformers_package(monkeypatch):
    monkeypatch.setitem(sys.modules, 'transformers', None)
    with pytest.raises(RuntimeError, match=r"'timm/ViT-B-16-SigLIP' needs a package .*: pip install transformers"):
        build_tokenizer(SIGLIP)(['a cat'])


def test_without_the_tokenizer_s_files(monkeypatch):
    monkeypatch.setitem(sys.modules, 'transformers', FakeTransformers(OSError('offline')))
    with pytest.raises(RuntimeError, match='neither a folder nor in the .* cache: .* text_cfg.hf_tokenizer_name'):
        build_tokenizer(SIGLIP)(['a cat'])


def test_words_go_before_a_named_tokenizer():
    assert isinstance(build_tokenizer({**SIGLIP, 'words': WORDS}), WordTokenizer)


def test_a_siglip_builds_without_its_tokenizer():
    with torch.device('meta'):
        assert VLM('ViT-B-16-SigLIP').tokenizer.name == 'timm/ViT-B-16-SigLIP'
