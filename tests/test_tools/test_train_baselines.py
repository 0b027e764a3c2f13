"""The baselines through tools/train.py: interrupted runs, and several processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from .test_train import GLOO, ROOT, differing, load, two_steps

METHODS = {
    'CLIPSelf': """
    loss=dict(type='densevlm_mm.CosineLoss'),
    multiscale=(32, 48, 64),
""",
    'RegionCLIP': """
    nouns=f'{_base_.data_root}/annotations/instances_train2017.json',
    templates=['a photo of a {}.'],
    loss=dict(type='densevlm_mm.FederatedBCELoss', num_sampled=8),
""",
}
CONFIG = """
_base_ = {base!r}
model = dict(_delete_=True, type='densevlm_mm.{method}', student=_base_.model.student, **_base_.texts, {arguments})
grid = dict(type='densevlm_mm.SampleGridRegions', min_split=1, max_regions=3)
crop = dict(type='densevlm_mm.CropRegions', size=32)
boxes = dict(type='densevlm_mm.LoadLabeledBoxes', max_regions=3)
regions = dict(CLIPSelf=[grid, crop], RegionCLIP=[boxes])['{method}']
train_dataloader = dict(
    dataset=dict(
        type='densevlm_mm.' + dict(CLIPSelf='ImageDataset', RegionCLIP='BoxDataset')['{method}'],
        pipeline=[*_base_.load_image, *regions, _base_.pack],
    )
)
custom_hooks = [dict(type='densevlm_mm.WeightEnsembleHook', alpha=0.75)]
"""


@pytest.fixture(scope='module', params=sorted(METHODS))
def config(request, configs, tmp_path_factory) -> Path:
    """Config file of a method."""
    path = tmp_path_factory.mktemp(request.param) / f'{request.param.lower()}.py'
    arguments = METHODS[request.param]
    path.write_text(CONFIG.format(base=str(configs['train']), method=request.param, arguments=arguments))
    return path


def test_interrupted_and_resumed_run_ends_with_the_same_bits(tool: Callable, config, tmp_path):
    options = {'val_cfg': None, 'val_dataloader': None, 'val_evaluator': None}
    tool('train', config, '--work-dir', tmp_path / 'whole', **options)
    stop = {'default_hooks__stop__type': 'Interruption', 'default_hooks__stop__after': 6}
    with pytest.raises(KeyboardInterrupt):
        tool('train', config, '--work-dir', tmp_path / 'parts', **options, **stop)
    tool('train', config, '--work-dir', tmp_path / 'parts', '--resume', **options)
    whole, resumed = (load(tmp_path / name, 10) for name in ('whole', 'parts'))
    for part in ('state_dict', 'raw_trainable'):
        assert differing(resumed[part], whole[part]) == []
    assert whole['message_hub']['runtime_info']['iter'] == 10 - 1


def test_two_processes_train_as_one(tool: Callable, launch: Callable, config, checkpoints, tmp_path):
    # what `two_steps` asks for, without the start of another process
    options = {'train_cfg__max_iters': 2, 'optim_wrapper__optimizer__type': 'SGD', 'optim_wrapper__optimizer__lr': 0.01}
    tool('train', config, '--work-dir', tmp_path / 'one', **options)
    arguments = two_steps(tmp_path / 'two', 'train_dataloader.batch_size=2', *GLOO)
    launch('bash', ROOT / 'tools' / 'dist_train.sh', config, 2, *arguments)
    one, two = (load(tmp_path / name, 2)['raw_trainable'] for name in ('one', 'two'))
    original = torch.load(checkpoints['student'])['state_dict']
    for name, value in one.items():
        moved = (value - original[name.removeprefix('vlm.')]).abs().max()
        torch.testing.assert_close(two[name], value, rtol=1e-6, atol=float(1e-4 * moved + 1e-9), msg=name)
    assert max((v - original[n.removeprefix('vlm.')]).abs().max() for n, v in one.items()) > 1e-5
