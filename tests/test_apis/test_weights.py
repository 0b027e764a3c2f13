"""Strict loading into a runner's model, whatever the model."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch
from mmengine.runner import Runner
from torch import nn

from densevlm_mm.apis import load_weights
from densevlm_mm.models import RegionClassifier
from densevlm_mm.vlm import load_vlm


@pytest.fixture
def classifier(tiny_arch) -> SimpleNamespace:
    model = RegionClassifier(vlm={'arch': tiny_arch()}, eval_vocabulary=['car'])
    return SimpleNamespace(model=model, logger=logging.getLogger('load_weights'))


def test_region_models_take_every_format(classifier, tiny_arch, tmp_path):
    other = load_vlm(tiny_arch())
    torch.save({'epoch': 1, 'state_dict': {f'module.{k}': v for k, v in other.state_dict().items()}}, tmp_path / 'e.pt')
    load_weights(classifier, str(tmp_path / 'e.pt'))
    for name, value in classifier.model.vlm.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])


def test_file_that_is_missing_or_damaged(classifier, tmp_path):
    with pytest.raises(FileNotFoundError, match='gone.pth does not exist'):
        load_weights(classifier, str(tmp_path / 'gone.pth'))
    (tmp_path / 'bad.pth').write_bytes(b'no checkpoint')
    with pytest.raises(ValueError, match='bad.pth is'):
        load_weights(classifier, str(tmp_path / 'bad.pth'))


def test_other_models_load_strictly_too(tmp_path):
    runner = Runner(nn.Linear(2, 3), work_dir=str(tmp_path), experiment_name='weights', log_level='ERROR')
    state = nn.Linear(2, 3).state_dict()
    torch.save({'state_dict': state}, tmp_path / 'good.pth')
    load_weights(runner, str(tmp_path / 'good.pth'))
    assert torch.equal(runner.model.weight, state['weight'])
    torch.save({'state_dict': {'weight': state['weight']}}, tmp_path / 'part.pth')
    with pytest.raises(RuntimeError, match='missing keys in source state_dict: bias'):
        load_weights(runner, str(tmp_path / 'part.pth'))
