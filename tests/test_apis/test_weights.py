"""Strict loading into a runner's model, whatever the model."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from torch import nn

from densevlm_mm.apis import load_weights, start_from
from densevlm_mm.models import RegionClassifier
from densevlm_mm.vlm import CheckpointError, load_vlm


def make_classifier(**vlm: object) -> SimpleNamespace:
    model = RegionClassifier(vlm=vlm, eval_vocabulary=['car'])
    return SimpleNamespace(model=model, logger=logging.getLogger('load_weights'))


@pytest.fixture
def classifier(tiny_arch) -> SimpleNamespace:
    return make_classifier(arch=tiny_arch())


def test_region_models_take_every_format(classifier, tiny_arch, tmp_path):
    other = load_vlm(tiny_arch())
    torch.save({'epoch': 1, 'state_dict': {f'module.{k}': v for k, v in other.state_dict().items()}}, tmp_path / 'e.pt')
    load_weights(classifier, str(tmp_path / 'e.pt'))
    for name, value in classifier.model.vlm.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])


def test_dense_mode_is_the_files_unless_the_config_names_one(classifier, tiny_arch, tmp_path):
    content = {'meta': {'vlm': {'dense_mode': 'csa'}}, 'state_dict': load_vlm(tiny_arch()).state_dict()}
    torch.save(content, tmp_path / 'csa.pth')
    load_weights(classifier, str(tmp_path / 'csa.pth'))
    assert classifier.model.vlm.dense_mode == 'csa'
    classifier = make_classifier(arch=tiny_arch(), dense_mode='value')
    with pytest.warns(UserWarning, match="csa.pth was trained in dense mode 'csa'.*model.vlm.dense_mode=csa"):
        load_weights(classifier, str(tmp_path / 'csa.pth'))
    assert classifier.model.vlm.dense_mode == 'value'


def test_the_file_of_a_detector_is_no_region_model_s(classifier, tmp_path):
    torch.save({'state_dict': {'backbone.a': torch.zeros(1), 'neck.b': torch.zeros(1)}}, tmp_path / 'detector.pth')
    with pytest.raises(ValueError, match='detector.pth does not fit(.|\n)*the file of a whole detector or segmentor'):
        load_weights(classifier, str(tmp_path / 'detector.pth'))


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
    with pytest.raises(CheckpointError, match=r'part.pth does not fit this Linear(.|\n)*: bias\nGive the config'):
        load_weights(runner, str(tmp_path / 'part.pth'))


def test_a_moving_average_does_not_stand_in_the_way(tmp_path):
    hooks = [{'type': 'EMAHook'}]
    runner = Runner(nn.Linear(2, 3), work_dir=str(tmp_path), custom_hooks=hooks, experiment_name='average')
    state = nn.Linear(2, 3).state_dict()
    torch.save({'state_dict': state, 'ema_state_dict': {}}, tmp_path / 'good.pth')
    load_weights(runner, str(tmp_path / 'good.pth'))
    assert torch.equal(runner.model.weight, state['weight'])


def test_load_from_becomes_the_checkpoint_of_what_trains():
    model = {'type': 'densevlm_mm.DenseVLM', 'student': {'checkpoint': 'a.pt'}, 'teacher': {}}
    cfg = Config({'model': model, 'load_from': 'b.pt', 'resume': False})
    start_from(cfg)
    assert (cfg.model.student.checkpoint, cfg.load_from) == ('b.pt', None)
    segmentor = {'type': 'densevlm_mm.CATSeg', 'vlm': {}}  # has more to load than its VLM
    for untouched in (
        {'model': {'type': 'X'}, 'load_from': 'b.pt'},
        {'model': {'type': 'densevlm_mm.DenseVML', 'student': {}}, 'load_from': 'b.pt'},  # whoever builds it complains
        {'model': segmentor, 'load_from': 'b.pt'},
        {**cfg, 'load_from': 'c.pt', 'resume': True},
    ):
        cfg = Config(untouched)
        start_from(cfg)
        assert cfg.load_from == untouched['load_from']
