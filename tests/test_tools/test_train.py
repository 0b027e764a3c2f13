"""tools/train.py from end to end: what a run leaves behind, interrupted runs, several processes, unusable configs."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import Tensor

from densevlm_mm.apis import ConfigError

ROOT = Path(__file__).parents[2]
# Two processes on CPUs: another backend than the default, and DDP without a device.
GLOO = [
    'env_cfg.dist_cfg.backend=gloo',
    'model_wrapper_cfg.device_ids=None',
    'model_wrapper_cfg.broadcast_buffers=False',
]
# FSDP likewise; on a GPU `strategy.state_dict_cfg=full` says the same, but weights that lie on the host anyway would be
# gone when they are to be taken there.
FSDP = [
    'env_cfg.dist_cfg.backend=gloo',
    'runner_type=FlexibleRunner',
    'strategy.type=FSDPStrategy',
    'strategy.model_wrapper.type=densevlm_mm.ShardedDataParallel',
    'strategy.model_wrapper.device_id=cpu',
    'strategy.state_dict_cfg.state_dict_type=FULL_STATE_DICT',
    'strategy.state_dict_cfg.state_dict_config.type=FullStateDictConfig',
    'strategy.state_dict_cfg.state_dict_config.rank0_only=True',
    'strategy.state_dict_cfg.optim_state_dict_config.type=FullOptimStateDictConfig',
    'strategy.state_dict_cfg.optim_state_dict_config.rank0_only=True',
    'strategy.state_dict_cfg.optim_state_dict_config.offload_to_cpu=True',
]


@HOOKS.register_module()
class Interruption(Hook):
    """Ends a run in the middle, as a signal would."""

    def __init__(self, after: int) -> None:
        self.after = after

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if runner.iter + 1 == self.after:
            raise KeyboardInterrupt


def load(folder: Path, iteration: int) -> dict:
    return torch.load(folder / f'iter_{iteration}.pth', weights_only=False)


def differing(found: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    """Entries that are not the same bit for bit."""
    assert set(found) == set(expected)
    return [name for name in expected if not torch.equal(found[name], expected[name])]


def scalars(folder: Path) -> list[dict]:
    """What was logged, in order."""
    logs = sorted(folder.glob('*/vis_data/scalars.json'))
    return [json.loads(line) for log in logs for line in log.read_text().splitlines()]


def test_what_a_run_leaves_behind(trained, checkpoints):
    assert (trained / 'last_checkpoint').read_text().endswith('iter_10.pth')
    assert sorted(path.stem for path in trained.glob('*.pth')) == ['iter_10', 'iter_4', 'iter_8']
    logged = scalars(trained)
    steps = [entry for entry in logged if 'loss' in entry]
    assert [entry['step'] for entry in steps] == list(range(1, 11))
    assert {'loss_thing', 'loss_stuff', 'kept_share', 'thing_share', 'confidence', 'score_thr'} <= set(steps[0])
    assert [steps[i]['lr'] for i in (0, 3, 4)] == pytest.approx([2.5e-4, 1e-3, 1e-3])
    assert steps[7]['lr'] == pytest.approx(5e-4 * (1 + math.cos(math.pi * 3 / 6)))
    assert [steps[i]['score_thr'] for i in (0, 4, 9)] == pytest.approx([0.08, 0.09, 0.1])
    assert all(entry['kept_share'] > 0 and math.isfinite(entry['loss']) for entry in steps)
    evaluated = [entry for entry in logged if 'masks.stuff.macc1' in entry]
    assert [entry['step'] for entry in evaluated] == [6, 10]
    original = torch.load(checkpoints['student'])['state_dict']
    changed = differing({f'vlm.{k}': v for k, v in original.items()}, load(trained, 10)['state_dict'])
    assert changed and all('.blocks.' in name for name in changed)


def test_interrupted_and_resumed_run_ends_with_the_same_bits(tool, configs, trained, tmp_path):
    interruption = {'default_hooks__stop__type': 'Interruption', 'default_hooks__stop__after': 7}
    with pytest.raises(KeyboardInterrupt):
        tool('train', configs['train'], '--work-dir', tmp_path, **interruption)
    assert (tmp_path / 'last_checkpoint').read_text().endswith('iter_4.pth')
    tool('train', configs['train'], '--work-dir', tmp_path, '--resume')
    whole, resumed = load(trained, 10), load(tmp_path, 10)
    for part in ('state_dict', 'raw_trainable'):
        assert differing(resumed[part], whole[part]) == []
    for name, state in whole['optimizer']['state'].items():
        assert differing(resumed['optimizer']['state'][name], state) == []
    assert resumed['param_schedulers'] == whole['param_schedulers']
    losses = {entry['step']: entry['loss'] for entry in scalars(tmp_path) if 'loss' in entry}
    assert losses == {entry['step']: entry['loss'] for entry in scalars(trained) if 'loss' in entry}


def test_resuming_from_a_given_checkpoint(tool, configs, trained, tmp_path):
    tool('train', configs['train'], '--work-dir', tmp_path, '--resume', trained / 'iter_8.pth')
    assert differing(load(tmp_path, 10)['raw_trainable'], load(trained, 10)['raw_trainable']) == []
    assert [entry['step'] for entry in scalars(tmp_path) if 'loss' in entry] == [9, 10]


def test_resuming_goes_before_load_from(tool, configs, trained, tmp_path):
    """The first start takes the weights of `load_from`; later ones go on from the work folder."""
    options = {'load_from': trained / 'iter_8.pth', 'train_cfg__max_iters': 4}
    tool('train', configs['train'], '--work-dir', tmp_path, '--resume', **options)
    assert [entry['step'] for entry in scalars(tmp_path) if 'loss' in entry] == [1, 2, 3, 4]
    started = load(tmp_path, 4)['state_dict']
    tool('train', configs['train'], '--work-dir', tmp_path, '--resume', **options, train_cfg__val_interval=9)
    assert [entry['step'] for entry in scalars(tmp_path) if 'loss' in entry] == [1, 2, 3, 4]
    assert differing(load(tmp_path, 4)['state_dict'], started) == []
    plain = load(trained, 4)['state_dict']
    assert differing(started, plain)


def test_runner_with_a_strategy_trains_the_same(tool, configs, trained, tmp_path):
    options = {'runner_type': 'FlexibleRunner', 'strategy__type': 'SingleDeviceStrategy'}
    tool('train', configs['train'], '--work-dir', tmp_path / 'whole', **options)
    tool('train', configs['train'], '--work-dir', tmp_path / 'on', '--resume', trained / 'iter_8.pth', **options)
    for folder in ('whole', 'on'):
        for part in ('state_dict', 'raw_trainable'):
            assert differing(load(tmp_path / folder, 10)[part], load(trained, 10)[part]) == []


def test_resuming_keeps_what_is_made_of_the_weights_of_load_from(tool, configs, trained, tmp_path):
    """Such as the original of a blend, or the frozen teacher of a self-distillation."""
    options = {'load_from': trained / 'iter_8.pth', 'train_cfg__max_iters': 4, 'train_cfg__val_interval': 9}
    options['default_hooks__checkpoint__interval'] = 2
    tool('train', configs['train'], '--work-dir', tmp_path / 'whole', **options)
    tool('train', configs['train'], '--work-dir', tmp_path / 'on', '--resume', tmp_path / 'whole/iter_2.pth', **options)
    whole, resumed = load(tmp_path / 'whole', 4), load(tmp_path / 'on', 4)
    for part in ('state_dict', 'raw_trainable'):
        assert differing(resumed[part], whole[part]) == []


def test_learning_rate_follows_the_batch_size_when_asked(tool, configs, tmp_path):
    options = {'train_cfg__max_iters': 1, 'auto_scale_lr__base_batch_size': 16}
    tool('train', configs['train'], '--work-dir', tmp_path, '--auto-scale-lr', **options)
    assert scalars(tmp_path)[0]['lr'] == pytest.approx(2.5e-4 * 4 / 16)
    with pytest.raises(SystemExit, match='sets no auto_scale_lr.base_batch_size'):
        tool('train', configs['train'], '--work-dir', tmp_path, '--auto-scale-lr')


def test_missing_files_are_all_named_and_nothing_starts(tool, configs, tmp_path):
    options = {'model__teacher__checkpoint': 'checkpoints/gone.pt', 'train_dataloader__dataset__ann_file': 'gone.json'}
    with pytest.raises(ConfigError, match=r'(?s)train.py cannot run:.*checkpoints/gone.pt.*gone.json does not exist'):
        tool('train', configs['train'], '--work-dir', tmp_path / 'run', **options)
    assert not (tmp_path / 'run').exists()


def test_mistyped_top_level_key_is_named(tool, configs, tmp_path):
    with pytest.raises(ConfigError, match="unknown key 'optim_wraper': did you mean 'optim_wrapper'"):
        tool('train', configs['train'], '--work-dir', tmp_path / 'run', optim_wraper__clip_grad=1)
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
    'key',
    [
        'model.loss.score_threshold', 'model.student.trainable_block', 'train_dataloader.batchsize',
        'train_dataloader.dataset.datapipeline', 'train_dataloader.sampler.ration', 'train_cfg.max_iter',
        'optim_wrapper.optimizer.learning_rate', 'custom_hooks.1.alfa', 'default_hooks.checkpoint.intervall',
        'val_evaluator.top_k', 'param_scheduler.0.start_fact',
    ],
)  # fmt: skip
def test_mistyped_nested_key_is_named(tool, configs, tmp_path, key):
    with pytest.raises((TypeError, ValueError), match=key.rpartition('.')[2]):
        tool('train', configs['train'], '--work-dir', tmp_path, **{key: 1})
    assert not list(tmp_path.glob('*.pth'))


def test_unknown_type_is_named(tool, configs, tmp_path):
    with pytest.raises(KeyError, match='DecoupledAlignmentLos '):
        tool('train', configs['train'], '--work-dir', tmp_path, model__loss__type='densevlm_mm.DecoupledAlignmentLos')


def test_threshold_that_keeps_nothing_ends_the_run(tool, configs, tmp_path):
    options = {'model__loss__logit_scale': 0.01, 'custom_hooks__0__patience': 2}
    with pytest.raises(RuntimeError, match='no region exceeded score_thr=.* in 2 iterations'):
        tool('train', configs['train'], '--work-dir', tmp_path, **options)


@pytest.fixture(scope='module')
def alone(launch, configs, tmp_path_factory) -> Path:
    """Two steps of one process, which has no compiled operators, MMDetection or MMSegmentation."""
    folder = tmp_path_factory.mktemp('alone')
    launch(sys.executable, ROOT / 'tools' / 'train.py', configs['train'], *two_steps(folder))
    return folder


def two_steps(folder: Path, *options: str) -> list:
    # the steps of Adam hardly depend on the size of a gradient: they would show rounding, not a mistake
    fixed = ['train_cfg.max_iters=2', 'optim_wrapper.optimizer.type=SGD', 'optim_wrapper.optimizer.lr=0.01', *options]
    return ['--work-dir', folder, '--cfg-options', *fixed]


def test_training_needs_neither_compiled_operators_nor_downstream_packages(alone):
    assert math.isfinite(load(alone, 2)['message_hub']['log_scalars']['train/loss'].current())


def test_two_processes_train_as_one(launch, configs, alone, checkpoints, tmp_path):
    arguments = two_steps(tmp_path, 'train_dataloader.batch_size=2', *GLOO)
    launch('bash', ROOT / 'tools' / 'dist_train.sh', configs['train'], 2, *arguments)
    went_alike(load(tmp_path, 2), load(alone, 2), checkpoints)


def went_alike(found: dict, expected: dict, checkpoints: dict[str, Path]) -> None:
    """Weights that train have moved by the same, up to rounding."""
    original, largest = torch.load(checkpoints['student'])['state_dict'], 0.0
    for name, value in expected['raw_trainable'].items():
        moved = float((value - original[name.removeprefix('vlm.')]).abs().max())
        largest = max(largest, moved)
        torch.testing.assert_close(found['raw_trainable'][name], value, rtol=1e-6, atol=1e-4 * moved + 1e-9, msg=name)
    assert largest > 1e-3


def test_weights_spread_over_processes_train_as_whole_ones_and_resume(tool, launch, configs, checkpoints, tmp_path):
    options = {
        'optim_wrapper__optimizer__type': 'SGD',
        'optim_wrapper__optimizer__lr': 0.01,
        'optim_wrapper__optimizer__momentum': 0.9,
        'optim_wrapper__constructor': 'densevlm_mm.DecayGroups',
        'train_cfg__max_iters': 3,
        'train_cfg__val_interval': 2,
        'default_hooks__checkpoint__interval': 1,
    }
    tool('train', configs['train'], '--work-dir', tmp_path / 'whole', **options)
    pairs = [f'{key.replace("__", ".")}={value}' for key, value in options.items()]
    for name, go_on in (('spread', []), ('resumed', ['--resume', tmp_path / 'spread' / 'iter_1.pth'])):
        arguments = ['--work-dir', tmp_path / name, *go_on, '--cfg-options', 'train_dataloader.batch_size=2']
        launch('bash', ROOT / 'tools' / 'dist_train.sh', configs['train'], 2, *arguments, *FSDP, *pairs)
    whole, spread, resumed = (load(tmp_path / name, 3) for name in ('whole', 'spread', 'resumed'))
    went_alike(spread, whole, checkpoints)
    for part in ('state_dict', 'raw_trainable'):
        assert set(spread[part]) == set(whole[part])
        assert differing(resumed[part], spread[part]) == []
    accuracies = [
        {key: value for key, value in entry.items() if 'time' not in key}
        for name in ('whole', 'spread')
        for entry in scalars(tmp_path / name)
        if 'masks.stuff.macc1' in entry
    ]
    assert len(accuracies) == 4
    assert accuracies[:2] == accuracies[2:]
