"""Examples in docstrings do what they show."""

from __future__ import annotations

import doctest
import importlib

import pytest

from .conftest import ROOT

MODULES = [
    '.'.join(path.relative_to(ROOT).with_suffix('').parts)
    for path in sorted((ROOT / 'densevlm_mm').rglob('*.py'))
    if '.mim' not in path.parts and '>>> ' in path.read_text('utf-8')
]


@pytest.mark.parametrize('module', MODULES)
def test_examples(module):
    results = doctest.testmod(importlib.import_module(module))
    assert results.attempted > 0
    assert results.failed == 0


def test_the_public_functions_of_vocabularies_and_grids_have_some():
    assert {'densevlm_mm.vlm.vocabulary', 'densevlm_mm.vlm.prompts', 'densevlm_mm.datasets.grids'} <= set(MODULES)
