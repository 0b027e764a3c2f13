"""Digests of files and weights."""

from __future__ import annotations

import hashlib

import pytest
import torch

from densevlm_mm.vlm.digest import sha256, state_digest

STATE = {'a': torch.arange(6.0).reshape(2, 3), 'b': torch.tensor(1)}


def test_a_file_has_its_standard_digest(tmp_path):
    file = tmp_path / 'file'
    file.write_bytes(b'x' * 3_000_000)
    assert sha256(file) == hashlib.sha256(b'x' * 3_000_000).hexdigest()


def test_weights_have_one_digest_whatever_their_order_and_layout():
    turned = {'b': STATE['b'], 'a': STATE['a'].T.contiguous().T}
    assert state_digest(turned) == state_digest(STATE)


@pytest.mark.parametrize(
    'change',
    [
        {'a': STATE['a'] + 1},
        {'a': STATE['a'].reshape(3, 2)},
        {'a': STATE['a'].to(torch.bfloat16)},
        {'c': torch.zeros(0)},
    ],
)
def test_any_change_shows(change):
    assert state_digest({**STATE, **change}) != state_digest(STATE)
