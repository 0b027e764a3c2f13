"""The blend that is saved and evaluated, the raw weights that training goes on from."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.data import DataLoader

from densevlm_mm.hooks import WeightEnsembleHook

names = (f'ensemble{i}' for i in itertools.count())


class Model(BaseModel):
    """A trainable and a frozen layer; both start as given, like a model with a checkpoint of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.trained, self.frozen = nn.Linear(3, 2), nn.Linear(2, 1).requires_grad_(False)
        for number, parameter in enumerate(self.parameters()):
            nn.init.constant_(parameter, 0.1 * (number + 1))

    def forward(self, inputs: Tensor, data_samples=None, mode: str = 'tensor'):
        output = self.frozen(self.trained(inputs.float()))
        return {'loss': output.square().mean()} if mode == 'loss' else [output]


class NoMetric(BaseMetric):
    def process(self, data_batch, data_samples) -> None:
        self.results.append(0)

    def compute_metrics(self, results) -> dict:
        return {'dummy': 0.0}


class Recorder(Hook):
    """Copies of the model's weights at the moments of interest, by (moment, iteration)."""

    priority = 'LOWEST'

    def __init__(self) -> None:
        self.weights: dict[tuple[str, int], dict[str, Tensor]] = {}

    def record(self, runner: Runner, moment: str) -> None:
        copies = {name: value.clone() for name, value in runner.model.state_dict().items()}
        self.weights[moment, runner.iter] = copies

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        self.record(runner, 'before step')

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.record(runner, 'after step')

    def before_val_iter(self, runner, batch_idx, data_batch=None) -> None:
        self.record(runner, 'evaluated')


@pytest.fixture
def build(tmp_path) -> Callable[..., tuple[Runner, Recorder]]:
    """Runner of four iterations with a checkpoint each and an evaluation every other, and what it will record."""

    def make(
        alpha: float | None = 0.25, max_iters: int = 4, folder: str = 'run', **options: object
    ) -> tuple[Runner, Recorder]:
        recorder = Recorder()
        data = [{'inputs': torch.arange(3.0) + i} for i in range(12)]
        runner = Runner(
            Model(),
            work_dir=str(tmp_path / folder),
            train_dataloader=DataLoader(data, batch_size=2),
            train_cfg={'by_epoch': False, 'max_iters': max_iters, 'val_interval': 2},
            optim_wrapper={'optimizer': {'type': 'AdamW', 'lr': 0.1}},
            val_dataloader=DataLoader(data[:1], batch_size=1),
            val_cfg={},
            val_evaluator=Evaluator(NoMetric()),
            default_hooks={'checkpoint': {'type': 'CheckpointHook', 'by_epoch': False, 'interval': 1}, 'logger': None},
            custom_hooks=[recorder] + ([] if alpha is None else [WeightEnsembleHook(alpha)]),
            experiment_name=next(names),
            log_level='ERROR',
            **options,
        )
        return runner, recorder

    return make


@pytest.fixture
def train(build) -> Callable[..., Recorder]:
    """Trains such a runner; returns what was seen."""

    def run(*args: object, **options: object) -> Recorder:
        runner, recorder = build(*args, **options)
        runner.train()
        return recorder

    return run


def saved(tmp_path: Path, iteration: int, folder: str = 'run') -> dict:
    return torch.load(tmp_path / folder / f'iter_{iteration}.pth', weights_only=False)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Bit for bit."""
    assert set(found) == set(expected)
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


def blend(raw: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
    original = Model().state_dict()
    return {name: alpha * raw[name] + (1 - alpha) * original[name] for name in raw}


def test_saved_weights_are_the_blend(train, tmp_path):
    recorder = train(alpha=0.25)
    for iteration in (1, 4):
        checkpoint, raw = saved(tmp_path, iteration), recorder.weights['after step', iteration - 1]
        expected = blend(raw, 0.25)
        for name, value in checkpoint['state_dict'].items():
            torch.testing.assert_close(value, expected[name])
        assert_same(checkpoint['raw_trainable'], {name: raw[name] for name in raw if name.startswith('trained')})
        assert not torch.equal(raw['trained.weight'], checkpoint['state_dict']['trained.weight'])
        assert torch.equal(raw['frozen.weight'], checkpoint['state_dict']['frozen.weight'])


def test_the_blend_is_evaluated_and_training_goes_on_from_the_raw_weights(train):
    weights = train(alpha=0.25).weights
    raw = weights['after step', 1]
    for name, value in weights['evaluated', 2].items():
        torch.testing.assert_close(value, blend(raw, 0.25)[name])
    assert_same(weights['before step', 2], raw)


def test_training_does_not_notice_the_hook(train):
    with_hook, without = train(alpha=0.25), train(alpha=None, folder='plain')
    for iteration in range(4):
        assert_same(with_hook.weights['after step', iteration], without.weights['after step', iteration])


@pytest.mark.parametrize(('alpha', 'kept'), [(1.0, 'after step'), (0.0, 'original')])
def test_ends_of_the_range(train, tmp_path, alpha, kept):
    weights = train(alpha=alpha).weights
    expected = Model().state_dict() if kept == 'original' else weights['after step', 3]
    assert_same(saved(tmp_path, 4)['state_dict'], expected)


def test_resuming_is_exact(train, tmp_path):
    whole = train(folder='whole')
    train(max_iters=3, folder='parts')
    resumed = train(folder='parts', resume=True)
    assert_same(resumed.weights['before step', 3], whole.weights['after step', 2])
    assert_same(resumed.weights['after step', 3], whole.weights['after step', 3])
    for part in ('state_dict', 'raw_trainable'):
        assert_same(saved(tmp_path, 4, 'parts')[part], saved(tmp_path, 4, 'whole')[part])


def test_another_run_starts_from_the_blend(train, tmp_path):
    train()
    other = train(folder='other', load_from=str(tmp_path / 'run' / 'iter_4.pth'))
    assert_same(other.weights['before step', 0], saved(tmp_path, 4)['state_dict'])


def test_evaluation_without_training_takes_the_weights_as_they_are(train, build, tmp_path):
    train()
    runner, recorder = build(load_from=str(tmp_path / 'run' / 'iter_4.pth'))
    runner.val()
    assert_same(recorder.weights['evaluated', 0], saved(tmp_path, 4)['state_dict'])


def test_evaluation_before_training_changes_nothing(train, build, tmp_path):
    train(folder='first')
    options = {'load_from': str(tmp_path / 'first' / 'iter_4.pth')}
    expected = train(**options).weights
    runner, recorder = build(folder='other', **options)
    runner.val()
    runner.train()
    for moment in (('evaluated', 4), ('after step', 3)):
        assert_same(recorder.weights[moment], expected[moment])


def test_evaluation_after_training_that_failed(build, monkeypatch):
    runner, recorder = build()
    monkeypatch.setattr(recorder, 'after_train_iter', lambda *args, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        runner.train()
    raw = {name: value.clone() for name, value in runner.model.state_dict().items()}
    runner.val()
    assert_same(recorder.weights['evaluated', 0], raw)


@pytest.mark.parametrize('evaluated_before', [False, True])
def test_resuming_a_built_runner_is_refused(train, build, tmp_path, evaluated_before):
    """The blend would be taken for the raw weights, and blended again."""
    train(folder='first')
    runner, recorder = build()
    if evaluated_before:
        runner.val()
    runner.resume(str(tmp_path / 'first' / 'iter_2.pth'))
    with pytest.raises(RuntimeError, match='resume by resume=True, load_from='):
        runner.train()
    assert not any(moment == 'after step' for moment, _ in recorder.weights)


def test_a_resumed_runner_can_be_evaluated(train, build, tmp_path):
    train(folder='first')
    runner, recorder = build()
    runner.resume(str(tmp_path / 'first' / 'iter_2.pth'))
    runner.val()
    assert_same(recorder.weights['evaluated', 2], saved(tmp_path, 2, 'first')['state_dict'])


def test_a_runner_goes_on_with_the_same_original(train, build):
    whole = train(max_iters=4, folder='whole').weights
    runner, recorder = build(max_iters=2)
    runner.train()
    runner.train_loop._max_iters = 4
    runner.train_loop.dataloader_iterator = iter(runner.train_dataloader)
    runner.train()
    assert_same(recorder.weights['after step', 3], whole['after step', 3])
    assert_same(recorder.weights['evaluated', 4], whole['evaluated', 4])


def test_checkpoints_of_runs_without_the_hook_are_not_resumed(train, tmp_path):
    train(alpha=None)
    with pytest.raises(RuntimeError, match='written without WeightEnsembleHook'):
        train(max_iters=6, resume=True)


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight / 2


def test_parameters_that_checkpoints_show_otherwise_are_refused_before_training(train, monkeypatch):
    def show_whole(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
        state[f'{prefix}weight'] = module.weight
        del state[f'{prefix}parametrizations.weight.original']

    def init(model: Model) -> None:
        plain(model)
        parametrize.register_parametrization(model.trained, 'weight', Doubled())
        model.trained.register_state_dict_post_hook(show_whole)

    plain = Model.__init__
    monkeypatch.setattr(Model, '__init__', init)
    with pytest.raises(ValueError, match='cannot blend 1 trainable .* trained.parametrizations.weight.original'):
        train()


@pytest.mark.parametrize('alpha', [-0.1, 1.1, 2.0])
def test_alpha_outside_its_range(alpha):
    with pytest.raises(ValueError, match=r'alpha must be in 0\.\.1'):
        WeightEnsembleHook(alpha)
