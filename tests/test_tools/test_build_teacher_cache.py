"""Training with a teacher cache, and tools/misc/build_teacher_cache.py, which fills one."""

from __future__ import annotations

import importlib.util
import json
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from densevlm_mm.models.distillers import densevlm, fill_teacher_cache

ROOT = Path(__file__).parents[2]
TOOL = ROOT / 'tools' / 'misc' / 'build_teacher_cache.py'
IMAGES = 24


@pytest.fixture(scope='module')
def build_tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location('build_teacher_cache', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def options(tmp_path) -> dict[str, object]:
    """What turns the config of the tests into one with a cache."""
    return {
        'model__teacher_cache__folder': tmp_path / 'cache',
        'train_dataloader__dataset__pipeline__3__fingerprint': True,
    }


@pytest.fixture
def fill(build_tool, configs, options, miniworld, monkeypatch) -> Callable[..., int]:
    """Runs the tool on that config."""
    monkeypatch.setenv('MINIWORLD_DATA', str(miniworld))
    monkeypatch.setenv('LOCAL_RANK', '0')

    def run(**changes: object) -> int:
        pairs = [f'{key.replace("__", ".")}={value}' for key, value in {**options, **changes}.items()]
        return build_tool.main([str(configs['train']), '--cfg-options', *pairs])

    return run


@pytest.fixture
def forbid_teacher(monkeypatch) -> Callable[[], None]:
    """From now on, loading a teacher fails."""

    def refuse(config: object) -> None:
        raise AssertionError('the teacher is loaded')

    return lambda: monkeypatch.setattr(densevlm, 'load_on_device', refuse)


def differing(found: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    assert set(found) == set(expected)
    return [name for name in expected if not torch.equal(found[name], expected[name])]


def assert_same_end(folder: Path, expected: Path) -> None:
    """The checkpoints after the last step hold the same bits."""
    one, two = (torch.load(path / 'iter_10.pth', weights_only=False) for path in (folder, expected))
    assert differing(one['state_dict'], two['state_dict']) == []
    assert differing(one['raw_trainable'], two['raw_trainable']) == []
    for name, state in two['optimizer']['state'].items():
        assert differing(one['optimizer']['state'][name], state) == []


def shares(folder: Path) -> list[float]:
    """Share of the images of each step that were found."""
    (log,) = folder.glob('*/vis_data/scalars.json')
    entries = map(json.loads, log.read_text().splitlines())
    return [entry['cached_share'] for entry in entries if 'cached_share' in entry]


def test_cold_and_warm_runs_end_with_the_same_bits(tool, configs, options, forbid_teacher, tmp_path):
    """Six steps are an epoch: the cold run finds what it stored in the last four."""
    tool('train', configs['train'], '--work-dir', tmp_path / 'cold', **options)
    forbid_teacher()
    tool('train', configs['train'], '--work-dir', tmp_path / 'warm', **options)
    assert_same_end(tmp_path / 'warm', tmp_path / 'cold')
    assert shares(tmp_path / 'cold') == [0] * 6 + [1] * 4
    assert shares(tmp_path / 'warm') == [1] * 10


def test_filled_cache_trains_without_the_teacher(tool, fill, configs, options, forbid_teacher, tmp_path, capsys):
    assert fill() == 0
    printed = capsys.readouterr().out
    assert f'{IMAGES} images of {309 * 24 * 2:,} bytes' in printed
    assert f'done: {IMAGES} images, of which {IMAGES} were new' in printed
    assert fill() == 0
    printed = capsys.readouterr().out
    assert f'{IMAGES} are stored, of this or other data sets' in printed
    assert f'done: {IMAGES} images, of which 0 were new' in printed
    forbid_teacher()
    options |= {'train_cfg__max_iters': 2}
    tool('train', configs['train'], '--work-dir', tmp_path / 'run', **options)
    assert shares(tmp_path / 'run') == [1, 1]


def test_interrupted_filling_goes_on(fill, monkeypatch, capsys):
    preprocess, batches = densevlm.DenseVLM.cached_regions, []

    def interrupt(model, *arguments):
        batches.append(1)
        if len(batches) > 2:
            raise KeyboardInterrupt
        return preprocess(model, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(densevlm.DenseVLM, 'cached_regions', interrupt)
        with pytest.raises(KeyboardInterrupt):
            fill()
    capsys.readouterr()
    assert fill() == 0
    assert f'of which {IMAGES - 8} were new' in capsys.readouterr().out


def test_several_processes_share_the_work(launch, fill, configs, options, tmp_path, capfd):
    pairs = [f'{key.replace("__", ".")}={value}' for key, value in options.items()]
    command = '"$PYTHON" -m torch.distributed.run --master-port "$PORT" --nproc-per-node 2 "$@"'
    printed = launch(
        'bash', '-c', command, 'torchrun', TOOL, configs['train'], '--launcher', 'pytorch', '--cfg-options',
        'env_cfg.dist_cfg.backend=gloo', *pairs,
    )  # fmt: skip
    assert f'done: {IMAGES} images, of which {IMAGES} were new' in printed
    assert len(list((tmp_path / 'cache').glob('*/*.features'))) == 2
    assert fill() == 0
    assert f'done: {IMAGES} images, of which 0 were new' in capfd.readouterr().out


def test_disk_that_is_too_small(fill, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(
        fill_teacher_cache.shutil, 'disk_usage', lambda path: namedtuple('Usage', 'free')(IMAGES * 309 * 24 * 2 - 1)
    )
    assert fill() == 2
    assert 'the disk is too small; make room or choose another folder' in capsys.readouterr().err
    assert not list((tmp_path / 'cache').glob('*/*.features'))


def test_complaints(fill, build_tool, configs, capsys):
    assert fill(train_dataloader__dataset__pipeline__3__fingerprint=False) == 2
    assert 'PackRegions' in capsys.readouterr().err
    assert build_tool.main([str(configs['train'])]) == 2
    assert "train.py: has no teacher cache; set model.teacher_cache=dict(folder='...')" in capsys.readouterr().err
    assert fill(model__teacher__checkpoint='checkpoints/gone.pt') == 2
    assert 'checkpoints/gone.pt does not exist' in capsys.readouterr().err
