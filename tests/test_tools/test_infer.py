"""tools/infer.py: what is wrong is said in a sentence."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def test_weights_of_another_model_are_refused_in_a_sentence(tmp_path):
    spec = importlib.util.spec_from_file_location('infer', ROOT / 'tools' / 'infer.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    torch.save({'state_dict': {'weight': torch.zeros(1)}}, tmp_path / 'other.pth')
    config = str(ROOT / 'configs' / 'miniworld' / 'catseg_tiny_ov-miniworld_original.py')
    weights = ['--weights', str(tmp_path / 'other.pth'), '--device', 'cpu']
    with pytest.raises(SystemExit) as stop:
        tool.main([config, str(tmp_path), '--task', 'segment', *weights])
    assert re.search(r'other\.pth does not fit this CATSeg(.|\n)*: weight\n(.|\n)*Give the config', stop.value.code)
