"""The command-line tools in this process or in several, on the mini world with models of two blocks."""

from __future__ import annotations

import itertools
import os
import runpy
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from densevlm_mm.vlm import load_vlm

ROOT = Path(__file__).parents[2]
NUMBERS = itertools.count()

CONFIG = """
_base_ = ['{configs}/datasets/miniworld.py', '{configs}/default_runtime.py']
vocabulary = dict(
    things=['car', 'house', 'tree', 'person', 'ball', 'star', 'fish', 'cup', 'boat', 'flower'],
    stuff=['grass', 'moss', 'wood', 'earth', 'sky', 'water', 'sand', 'stone'],
)
texts = dict(eval_vocabulary=vocabulary, eval_templates=['a photo of a {{}}.'])
data_preprocessor = dict(type='ImgDataPreprocessor', mean=[128.0] * 3, std=[64.0] * 3)
train_dataloader = dict(batch_size=4, num_workers=0, persistent_workers=False)
val_dataloader = dict(batch_size=3, num_workers=0)
test_dataloader = val_dataloader
"""

TRAIN = """
model = dict(
    type='densevlm_mm.DenseVLM',
    data_preprocessor=data_preprocessor,
    student=dict({student}, trainable_blocks=2),
    teacher=dict({teacher}),
    vocabulary=vocabulary,
    templates=['a photo of a {{}}.'],
    loss=dict(type='densevlm_mm.DecoupledAlignmentLoss', score_thr=0.1),
    **texts,
)
custom_hooks = [
    dict(type='densevlm_mm.DecoupledLossHook', score_thr=dict(begin=0, end=8, start=0.08, stop=0.1)),
    dict(type='densevlm_mm.WeightEnsembleHook', alpha=0.75),
]
train_cfg = dict(type='densevlm_mm.ResumableTrainLoop', max_iters=10, val_interval=6)
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.1))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.25, by_epoch=False, begin=0, end=4),
    dict(type='CosineAnnealingLR', T_max=6, by_epoch=False, begin=4, end=10),
]
default_hooks = dict(checkpoint=dict(interval=4, max_keep_ckpts=-1), logger=dict(interval=1))
"""

EVALUATE = """
model = dict(
    type='densevlm_mm.RegionClassifier', data_preprocessor=data_preprocessor, vlm=dict(arch={arch}), **texts
)
train_dataloader = val_dataloader = val_evaluator = val_cfg = None
"""


@pytest.fixture(scope='session')
def checkpoints(tmp_path_factory, tiny_arch) -> dict[str, Path]:
    """Files of a student and of a wider teacher."""
    folder, parts = tmp_path_factory.mktemp('weights'), {'student': tiny_arch(), 'teacher': tiny_arch(48, 24)}
    for seed, (who, arch) in enumerate(parts.items()):
        torch.manual_seed(seed)
        torch.save({'state_dict': load_vlm(arch).state_dict()}, folder / f'{who}.pt')
    return {who: folder / f'{who}.pt' for who in parts}


@pytest.fixture(scope='session')
def configs(tmp_path_factory, tiny_arch, checkpoints) -> dict[str, Path]:
    """Config files 'train' and 'evaluate'."""
    folder = tmp_path_factory.mktemp('configs')
    shared = CONFIG.format(configs=ROOT / 'configs' / '_base_')
    vlms = {'student': tiny_arch(), 'teacher': tiny_arch(48, 24)}
    vlms = {who: f'arch={arch!r}, checkpoint={str(checkpoints[who])!r}' for who, arch in vlms.items()}
    (folder / 'train.py').write_text(shared + TRAIN.format(**vlms))
    (folder / 'evaluate.py').write_text(shared + EVALUATE.format(arch=tiny_arch()))
    return {name: folder / f'{name}.py' for name in ('train', 'evaluate')}


@pytest.fixture(scope='session')
def tool(miniworld: Path) -> Callable[..., None]:
    """Runs ``tools/NAME.py`` in this process: its arguments, then overrides of the config."""

    def run(name: str, *arguments: object, **options: object) -> None:
        # runs that start in the same second would otherwise share a name, and with it their logs
        options = {'experiment_name': f'tool{next(NUMBERS)}', 'log_level': 'ERROR', **options}
        pairs = [f'{key.replace("__", ".")}={value}' for key, value in options.items()]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv('MINIWORLD_DATA', str(miniworld))
            patch.setenv('LOCAL_RANK', '0')
            # mmengine lays out the config five times per run, which takes longer than everything else
            patch.setattr('yapf.yapflib.yapf_api.FormatCode', lambda text, **style: (text, False))
            patch.setattr(sys, 'argv', [f'{name}.py', *map(str, arguments), '--cfg-options', *pairs])
            threads = torch.get_num_threads()
            torch.set_num_threads(1)  # models this small only wait for a second one
            try:
                runpy.run_path(str(ROOT / 'tools' / f'{name}.py'), run_name='__main__')
            finally:
                torch.set_num_threads(threads)

    return run


@pytest.fixture
def call(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """Runs ``tools/NAME.py ARGUMENTS`` in this process; gives exit code, output and errors."""

    def run(name: str, *arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, 'argv', [name, *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / 'tools' / f'{name}.py'), run_name='__main__')
        return ended.value.code, *capsys.readouterr()

    return run


# What every process of a run does at its start. mmengine's launcher asks for a GPU also where gloo runs on CPUs; FSDP
# gathers one state of an optimiser after the other in the same memory, and takes what it moves to the host for a copy;
# and nothing here may need compiled operators, MMDetection or MMSegmentation.
SITE = """
import sys
import torch
torch.cuda.set_device = lambda device: None
torch.Tensor.cpu = lambda self: self.clone()
torch.set_num_threads(1)
sys.modules.update({'mmcv._ext': None, 'mmdet': None, 'mmseg': None})
"""


@pytest.fixture(scope='session')
def launch(miniworld, tmp_path_factory) -> Callable[..., str]:
    """Runs a command with Python as `$PYTHON`, without compiled operators, MMDetection and MMSegmentation.

    Returns what it printed.
    """
    site = tmp_path_factory.mktemp('site')
    (site / 'sitecustomize.py').write_text(SITE)

    def run(*command: object) -> str:
        with socket.socket() as probe:
            probe.bind(('127.0.0.1', 0))
            port = probe.getsockname()[1]
        environment = os.environ | {
            'PYTHONPATH': os.pathsep.join([str(site), str(ROOT), *filter(None, sys.path)]),
            'MINIWORLD_DATA': str(miniworld),
            'PYTHON': sys.executable,
            'PORT': str(port),
            'OMP_NUM_THREADS': '1',
        }
        done = subprocess.run(
            list(map(str, command)), env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-12000:]
        return done.stdout

    return run


@pytest.fixture(scope='session')
def trained(tool, configs, tmp_path_factory) -> Path:
    """Work folder of ten iterations without interruption."""
    folder = tmp_path_factory.mktemp('runs') / 'whole'
    tool('train', configs['train'], '--work-dir', folder)
    return folder
