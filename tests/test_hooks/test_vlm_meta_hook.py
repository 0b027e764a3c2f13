"""Checkpoints say what model they are of, and what reads them listens."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.data import DataLoader

from densevlm_mm import __version__
from densevlm_mm.hooks import VLMMetaHook, WeightEnsembleHook
from densevlm_mm.models.region_classifier import RegionModel
from densevlm_mm.vlm import load_vlm, read_meta, read_state_dict
from densevlm_mm.vlm.checkpoints import read_checkpoint

names = (f'meta{i}' for i in itertools.count())


class Student(RegionModel):
    """Trains its logit scale alone."""

    def loss(self, inputs: Tensor, data_samples: None = None) -> dict[str, Tensor]:
        return {'loss': self.vlm.logit_scale * inputs.mean()}


class Other(BaseModel):
    """A model without a VLM, and something else by that name."""

    def __init__(self) -> None:
        super().__init__()
        self.vlm = nn.Linear(1, 1)

    def forward(self, inputs: Tensor, data_samples: None = None, mode: str = 'tensor') -> dict[str, Tensor]:
        return {'loss': self.vlm(inputs.mean().reshape(1)).mean()}


@pytest.fixture
def train(tmp_path) -> Callable[..., Path]:
    """Trains for an iteration and gives the checkpoint."""

    def run(model: BaseModel, *hooks: object) -> Path:
        Runner(
            model,
            work_dir=str(tmp_path / 'run'),
            train_dataloader=DataLoader([{'inputs': torch.ones(3, 8, 8)}] * 2, batch_size=2),
            train_cfg={'by_epoch': False, 'max_iters': 1},
            optim_wrapper={'optimizer': {'type': 'SGD', 'lr': 0.1}},
            default_hooks={'checkpoint': {'type': 'CheckpointHook', 'by_epoch': False, 'interval': 1}},
            custom_hooks=[*hooks, {'type': 'densevlm_mm.VLMMetaHook'}],
            experiment_name=next(names),
            log_level='ERROR',
        ).train()
        return tmp_path / 'run' / 'iter_1.pth'

    return run


def test_what_a_checkpoint_says(train, tiny_arch):
    student = Student(load_vlm(tiny_arch(), dense_mode='csa').requires_grad_(False))
    student.vlm.logit_scale.requires_grad_(True)
    student.vlm.visual.mean, student.vlm.visual.std = (0.5, 0.25, 0.75), (0.5, 0.5, 0.25)
    student.vlm.config = ConfigDict(tiny_arch())  # configs of a runner are no plain dicts, and must not be pickled
    file = train(student, WeightEnsembleHook(alpha=0.5))
    said = {'arch': tiny_arch(), 'dense_mode': 'csa', 'method': 'Student', 'version': __version__}
    said |= {'mean': [0.5, 0.25, 0.75], 'std': [0.5, 0.5, 0.25]}
    assert read_meta(file) == said
    assert read_checkpoint(file).meta['iter'] == 1
    restored = load_vlm(said['arch'], file)
    assert restored.dense_mode == 'csa'
    assert (restored.visual.mean, restored.visual.std) == ((0.5, 0.25, 0.75), (0.5, 0.5, 0.25))
    assert torch.equal(restored.logit_scale, read_state_dict(file)['logit_scale'])


def test_a_runner_s_model_is_warned_of_another_mode(train, tiny_arch):
    file = train(Student(load_vlm(tiny_arch(), dense_mode='csa')))
    with pytest.warns(UserWarning, match="'csa'.*model.vlm.dense_mode=csa"):
        Student(load_vlm(tiny_arch())).load_weights(file)


def test_other_models_are_left_alone(train):
    file = train(Other())
    assert read_meta(file) == {}
    assert 'vlm' not in read_checkpoint(file).meta


def test_wrapped_models_say_it_too(tiny_arch):
    runner = SimpleNamespace(model=nn.DataParallel(Student(load_vlm(tiny_arch()))))
    checkpoint = {'meta': {'epoch': 1}}
    VLMMetaHook().before_save_checkpoint(runner, checkpoint)
    assert checkpoint['meta']['vlm']['dense_mode'] == 'value'
    assert checkpoint['meta']['epoch'] == 1


@pytest.mark.parametrize(
    ('checkpoint', 'message'),
    [
        ({'state_dict': {'visual.a': 1}}, "give the file as `checkpoint` of the config's student"),
        ({'state_dict': {'vlm.a': 1}, 'meta': {'vlm': {'dense_mode': 'csa'}}}, "give dense_mode='csa' there"),
    ],
)
def test_files_that_mmengine_would_load_loosely_are_refused(tiny_arch, checkpoint, message):
    runner = SimpleNamespace(model=Student(load_vlm(tiny_arch())))
    with pytest.raises(ValueError, match=message):
        VLMMetaHook().after_load_checkpoint(runner, checkpoint)


def test_fitting_files_and_other_models_are_let_through(tiny_arch):
    fitting = {'state_dict': {'module.vlm.a': 1}, 'meta': {'vlm': {'dense_mode': 'value'}}}
    VLMMetaHook().after_load_checkpoint(SimpleNamespace(model=Student(load_vlm(tiny_arch()))), fitting)
    VLMMetaHook().after_load_checkpoint(SimpleNamespace(model=Other()), {'state_dict': {'backbone.a': 1}})
