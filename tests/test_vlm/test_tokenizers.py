from __future__ import annotations

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
