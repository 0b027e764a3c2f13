"""tools/train.py on images in tar files, some of them bad: interrupted runs, several processes, too many bad images."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import Tensor

from densevlm_mm.datasets.tar_shards import write_shards

ROOT = Path(__file__).parents[2]
STEPS = 9

CONFIG = """
_base_ = [{train!r}]
train_dataloader = dict(
    sampler=dict(window=2),
    dataset=dict(type='densevlm_mm.TarImageDataset', data_root={root!r}, ann_file='', data_prefix=dict(img_path='')),
)
default_hooks = dict(bad_images=dict(type='densevlm_mm.BadImageHook', max_share=0.5, min_images=8))
train_cfg = dict(max_iters={steps}, val_interval=100)
param_scheduler = None
# the steps of Adam hardly depend on the size of a gradient: they would show rounding, not a mistake
optim_wrapper = dict(optimizer=dict(_delete_=True, type='SGD', lr=0.01))
"""
# Two processes on CPUs: another backend than the default, and DDP without a device.
GLOO = [
    'train_dataloader.batch_size=2',
    'env_cfg.dist_cfg.backend=gloo',
    'model_wrapper_cfg.device_ids=None',
    'model_wrapper_cfg.broadcast_buffers=False',
]


@HOOKS.register_module()
class ShardInterruption(Hook):
    """Ends a run in its second epoch, as a signal would."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if runner.iter + 1 == 7:
            raise KeyboardInterrupt


@pytest.fixture(scope='module')
def config(miniworld, configs, tmp_path_factory) -> Path:
    """The training config on tar files of five images, two of which are damaged, one grey."""
    folder = tmp_path_factory.mktemp('shards')
    shutil.copytree(miniworld / 'train2017', folder / 'images')
    first, second, third, *_ = sorted((folder / 'images').iterdir())
    first.write_bytes(first.read_bytes()[:200])
    second.write_bytes(b'')
    third.write_bytes(b'P5 48 48 255\n' + bytes(range(48)) * 48)
    write_shards(folder / 'images', folder / 'shards', per_shard=5)
    path = folder / 'train_shards.py'
    path.write_text(CONFIG.format(train=str(configs['train']), root=str(folder / 'shards'), steps=STEPS))
    return path


@pytest.fixture(scope='module')
def whole(tool, config, tmp_path_factory) -> Path:
    """Work folder of a run without interruption, by one process."""
    folder = tmp_path_factory.mktemp('runs') / 'whole'
    tool('train', config, '--work-dir', folder)
    return folder


def load(folder: Path) -> dict:
    return torch.load(folder / f'iter_{STEPS}.pth', weights_only=False)


def weights(folder: Path) -> dict[str, Tensor]:
    return load(folder)['raw_trainable']


def counts(folder: Path) -> dict:
    found = load(folder)['message_hub']['runtime_info']['bad_images']
    return {
        'used': found['used'],
        **{kind: count for what in ('replaced', 'converted') for kind, (count, _) in found[what].items()},
    }


def test_bad_images_are_counted(whole):
    assert counts(whole) == {'used': 4 * STEPS, 'truncated': 2, 'empty': 2, 'greyscale': 2}


def test_interrupted_and_resumed_run_ends_with_the_same_bits(tool, config, whole, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        tool('train', config, '--work-dir', tmp_path, default_hooks__stop__type='ShardInterruption')
    assert (tmp_path / 'last_checkpoint').read_text().endswith('iter_4.pth')
    tool('train', config, '--work-dir', tmp_path, '--resume')
    resumed, expected = weights(tmp_path), weights(whole)
    assert [name for name in expected if not torch.equal(resumed[name], expected[name])] == []
    assert counts(tmp_path) == counts(whole)


def test_two_processes_train_as_one(launch, config, whole, checkpoints, tmp_path):
    launch(
        'bash', ROOT / 'tools' / 'dist_train.sh', config, 2, '--work-dir', tmp_path, '--cfg-options', *GLOO
    )  # fmt: skip
    original, one, two = torch.load(checkpoints['student'])['state_dict'], weights(whole), weights(tmp_path)
    moved = {name: (value - original[name.removeprefix('vlm.')]).abs().max() for name, value in one.items()}
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-6, atol=float(1e-4 * moved[name] + 1e-9), msg=name)
    assert max(moved.values()) > 1e-3
    assert counts(tmp_path) == counts(whole)


def test_too_many_bad_images_end_the_run(tool, config, tmp_path):
    with pytest.raises(RuntimeError, match=r'more than 1.00% of the images are bad: .*\.jpg.*fetch them again'):
        tool('train', config, '--work-dir', tmp_path, default_hooks__bad_images__max_share=0.01)
