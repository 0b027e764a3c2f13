from __future__ import annotations

import itertools
import logging
from typing import ClassVar

import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.hooks import CheckpointHook
from mmengine.logging import MessageHub, MMLogger
from mmengine.model import BaseModel
from mmengine.runner import Runner as EngineRunner
from mmengine.structures import BaseDataElement
from torch import nn
from torch.utils.data import DataLoader

from densevlm_mm.hooks import BadImageHook
from densevlm_mm.registry import HOOKS

names = (f'bad{i}' for i in itertools.count())


class Runner:
    """What the hook sees of one."""

    def __init__(self) -> None:
        self.iter, self.max_iters, self.hooks = 0, 1000, []
        self.message_hub = MessageHub.get_instance(next(names))
        self.logger = MMLogger(next(names), logger_name='bad', log_level='INFO')
        self.said: list[tuple[str, str]] = []
        handler = logging.Handler()
        handler.emit = lambda record: self.said.append((record.levelname, record.getMessage()))
        self.logger.handlers = [handler]


def batch(size: int, *, replaced: tuple = (), converted: tuple = ()) -> dict:
    """Samples of which the first has been through this."""
    samples = [BaseDataElement(metainfo={'img_path': f'{i}.jpg'}) for i in range(size)]
    samples[0].set_metainfo({k: v for k, v in (('replaced', replaced), ('converted', converted)) if v})
    return {'data_samples': samples}


@pytest.fixture
def start():
    """Builds the hook and begins training."""

    def build(runner: Runner | None = None, **options) -> tuple[BadImageHook, Runner]:
        hook, runner = HOOKS.build({'type': 'densevlm_mm.BadImageHook', 'interval': 1, **options}), runner or Runner()
        hook.before_train(runner)
        return hook, runner

    return build


def test_first_of_each_kind_is_reported_and_all_are_counted(start):
    hook, runner = start()
    hook.after_train_iter(runner, 0, batch(4))
    assert runner.said == []
    hook.after_train_iter(runner, 1, batch(4, replaced=(('truncated', 'a.jpg'), ('empty', 'b.jpg'))))
    hook.after_train_iter(runner, 2, batch(4, replaced=(('truncated', 'c.jpg'),), converted=('CMYK', 'EXIF rotation')))
    assert [(level, said.split()[0]) for level, said in runner.said] == [
        ('WARNING', 'a.jpg'), ('WARNING', 'b.jpg'), ('INFO', '0.jpg'), ('INFO', '0.jpg'),
    ]  # fmt: skip
    assert '(truncated)' in runner.said[0][1] and 'Fetch it again or drop it from the data set' in runner.said[0][1]
    hook.after_train(runner)
    assert runner.said[-1] == (
        'INFO',
        'Bad images: 12 used; 3 replaced: truncated 2 (as a.jpg), empty 1 (as b.jpg); '
        '2 converted: CMYK 1 (as 0.jpg), EXIF rotation 1 (as 0.jpg)',
    )


def test_nothing_to_report(start):
    hook, runner = start()
    hook.after_train_iter(runner, 0, batch(4))
    hook.after_train(runner)
    assert runner.said == [('INFO', 'Bad images: 4 used; 0 replaced; 0 converted')]


def test_too_many_end_the_run(start):
    hook, runner = start(max_share=0.1, min_images=20)
    bad = (('truncated', 'a.jpg'),)
    hook.after_train_iter(runner, 0, batch(4, replaced=bad))  # a share of 0.2, of too few images
    hook.after_train_iter(runner, 1, batch(14))  # 1 of 19
    hook.after_train_iter(runner, 2, batch(9, replaced=bad))  # 2 of 29
    with pytest.raises(RuntimeError, match=r'more than 10.00% of the images are bad: .*truncated 4 .*a.jpg.*max_share'):
        hook.after_train_iter(runner, 3, batch(1, replaced=2 * bad))  # 4 of 32


def test_share_that_is_just_allowed(start):
    hook, runner = start(max_share=0.25, min_images=1)
    hook.after_train_iter(runner, 0, batch(3, replaced=(('empty', 'a.jpg'),)))
    with pytest.raises(RuntimeError, match='empty 2'):
        hook.after_train_iter(runner, 1, batch(1, replaced=(('empty', 'a.jpg'),)))


def test_conversions_never_end_the_run(start):
    hook, runner = start(max_share=0, min_images=1)
    for iteration in range(3):
        hook.after_train_iter(runner, iteration, batch(1, converted=('greyscale',)))
    assert hook.counts['converted'] == {'greyscale': [3, '0.jpg']}


def test_resumed_run_goes_on_counting(start, tmp_path):
    hook, runner = start()
    hook.after_train_iter(runner, 0, batch(4, replaced=(('empty', 'a.jpg'),)))
    torch.save(runner.message_hub.state_dict(), tmp_path / 'hub.pth')
    hook.after_train_iter(runner, 1, batch(4))  # lost with the interruption
    resumed = Runner()
    resumed.message_hub.load_state_dict(torch.load(tmp_path / 'hub.pth', weights_only=False))
    hook, _ = start(resumed)
    hook.after_train_iter(resumed, 1, batch(4, replaced=(('empty', 'b.jpg'), ('too small', 'c.jpg'))))
    assert hook.counts == {'used': 8, 'replaced': {'empty': [2, 'a.jpg'], 'too small': [1, 'c.jpg']}, 'converted': {}}
    assert [said.split()[0] for _, said in resumed.said] == ['c.jpg']


def test_counts_of_all_processes(start, monkeypatch):
    """Every process knows all of them, so that all end at the same time."""
    theirs = (4, [('replaced', 'empty', 'b.jpg')])
    monkeypatch.setattr('densevlm_mm.hooks.bad_image_hook.all_gather_object', lambda mine: [mine, theirs])
    hook, runner = start()
    hook.after_train_iter(runner, 0, batch(4, replaced=(('empty', 'a.jpg'),)))
    assert hook.counts['used'] == 8 and hook.counts['replaced'] == {'empty': [2, 'a.jpg']}


@pytest.mark.parametrize('share', [-0.1, 1.1])
def test_share_out_of_range(share):
    with pytest.raises(ValueError, match='max_share'):
        BadImageHook(max_share=share)


def test_processes_speak_now_and_then_and_before_each_checkpoint(start):
    hook, runner = start(interval=4)
    runner.hooks, runner.max_iters = [CheckpointHook(interval=3, by_epoch=False)], 10
    counted = []
    for runner.iter in range(10):
        hook.after_train_iter(runner, runner.iter, batch(1))
        counted.append(hook.counts['used'])
    assert counted == [0, 0, 3, 4, 4, 6, 6, 8, 9, 10]


class Model(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, inputs, data_samples, mode: str) -> dict[str, torch.Tensor]:
        return {'loss': self.weight * len(inputs)}


class Converted(torch.utils.data.Dataset):
    """Eight images, each of which counts as converted."""

    metainfo: ClassVar[dict] = {}

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict:
        sample = BaseDataElement(metainfo={'img_path': f'{index}.jpg', 'converted': ('greyscale',)})
        return {'inputs': torch.zeros(1), 'data_samples': sample}


def test_checkpoints_of_epochs_hold_the_counts(tmp_path):
    hooks = {'logger': None, 'checkpoint': {'type': 'CheckpointHook', 'interval': 1}}
    counts = HOOKS.build({'type': 'densevlm_mm.BadImageHook', 'interval': 3})
    EngineRunner(
        Model(),
        work_dir=str(tmp_path),
        train_dataloader=DataLoader(Converted(), batch_size=2, collate_fn=pseudo_collate),
        train_cfg={'by_epoch': True, 'max_epochs': 2},
        optim_wrapper={'optimizer': {'type': 'SGD', 'lr': 0.1}},
        default_hooks=hooks,
        custom_hooks=[counts],
        experiment_name=next(names),
        log_level='ERROR',
    ).train()
    for epoch in (1, 2):
        hub = torch.load(tmp_path / f'epoch_{epoch}.pth', weights_only=False)['message_hub']
        assert hub['runtime_info']['bad_images']['used'] == 8 * epoch
        assert hub['runtime_info']['bad_images']['converted']['greyscale'][0] == 8 * epoch
