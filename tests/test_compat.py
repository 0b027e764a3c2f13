"""The environment checks: what they refuse, what they say, and what they leave alone."""

from __future__ import annotations

import importlib
import io
import pickle
import subprocess
import sys
import types
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch

from densevlm_mm import compat

ROOT = Path(__file__).parents[1]


def fake_module(monkeypatch: pytest.MonkeyPatch, name: str, **attributes: object) -> None:
    module = types.ModuleType(name)
    module.__dict__.update(attributes)
    monkeypatch.setitem(sys.modules, name, module)


class TestDuplicates:
    def test_names_the_owners_and_the_line_that_removes_them(self):
        distributions = {
            'mmdet': ['onedl-mmdetection', 'mmdet'],
            'mmcv': ['mmcv', 'mmcv-lite'],
            'mmengine': ['mmengine'],
        }
        with pytest.raises(compat.CompatError) as error:
            compat.refuse_duplicates(distributions)
        message = str(error.value)
        assert 'mmdet belongs to mmdet and onedl-mmdetection' in message
        assert 'pip uninstall -y mmcv mmcv-lite mmdet onedl-mmdetection\n' in message
        assert 'mmengine belongs' not in message

    def test_one_owner_listed_twice_is_one_owner(self):
        compat.refuse_duplicates({'mmdet': ['mmdet', 'mmdet'], 'mmcv': ['mmcv']})

    def test_other_packages_are_none_of_its_business(self):
        compat.refuse_duplicates({'cv2': ['opencv-python', 'opencv-python-headless']})

    def test_setup_refuses(self, monkeypatch):
        owners = {'mmseg': ['mmsegmentation', 'onedl-mmsegmentation']}
        monkeypatch.setattr(compat.metadata, 'packages_distributions', lambda: owners)
        with pytest.raises(compat.CompatError, match='pip uninstall -y mmsegmentation onedl-mmsegmentation'):
            compat.setup()


class TestRequire:
    def test_returns_the_package(self):
        assert compat.require('mmengine') is importlib.import_module('mmengine')

    def test_missing_names_the_extra(self, monkeypatch):
        monkeypatch.setitem(sys.modules, 'mmengine', None)
        with pytest.raises(compat.CompatError, match=r"mmengine cannot be imported.*\n.*extra 'openmmlab'"):
            compat.require('mmengine')

    @pytest.mark.parametrize(('version', 'supported'), [
        ('0.10.6', False), ('0.10.7', True), ('0.11.0rc3', True), ('0.10.12', True), ('1.0.0', False),
    ])  # fmt: skip
    def test_versions_of_mmengine(self, monkeypatch, version, supported):
        fake_module(monkeypatch, 'mmengine', __version__=version)
        if supported:
            assert compat.require('mmengine').__version__ == version
        else:
            with pytest.raises(compat.CompatError, match=f'mmengine {version} is not supported'):
                compat.require('mmengine')

    def test_refusal_of_mmdet_is_passed_on_with_the_remedy(self, monkeypatch):
        def refuse(name: str):
            raise AssertionError('MMCV==2.2.0 is used but incompatible.')

        monkeypatch.setattr(compat.importlib, 'import_module', refuse)
        with pytest.raises(compat.CompatError, match=r'mmdet refuses.*MMCV==2\.2\.0.*\n.*openmmlab'):
            compat.require('mmdet')

    def test_is_no_import_error(self):
        # mmengine's registries swallow these while they import `densevlm_mm.registry`
        assert not issubclass(compat.CompatError, (ImportError, AttributeError))


class TestMmcvOps:
    def test_missing_gives_the_recipe(self, monkeypatch):
        monkeypatch.setitem(sys.modules, 'mmcv._ext', None)
        monkeypatch.setattr(compat.metadata, 'packages_distributions', lambda: {'mmcv': ['mmcv']})
        with pytest.raises(compat.CompatError) as error:
            compat.require_mmcv_ops('The F-ViT detector')
        message = str(error.value)
        assert message.startswith('The F-ViT detector needs the compiled operators of mmcv')
        assert 'MMCV_WITH_OPS=1' in message
        assert "'setuptools<81'" in message
        assert "--no-build-isolation --no-cache-dir --no-binary mmcv 'mmcv==2.1.0'" in message
        assert torch.__version__ in message

    def test_the_fork_is_rebuilt_as_the_fork(self, monkeypatch):
        monkeypatch.setitem(sys.modules, 'mmcv._ext', None)
        monkeypatch.setattr(compat.metadata, 'packages_distributions', lambda: {'mmcv': ['onedl-mmcv']})
        with pytest.raises(compat.CompatError, match="--no-binary onedl-mmcv 'onedl-mmcv==") as error:
            compat.require_mmcv_ops()
        assert "'setuptools>=77,<82'" in str(error.value)

    def test_a_gpu_asks_for_cuda_operators(self, monkeypatch):
        monkeypatch.setitem(sys.modules, 'mmcv._ext', None)
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
        with pytest.raises(compat.CompatError, match='FORCE_CUDA=1'):
            compat.require_mmcv_ops()

    def test_compiled_is_silent(self, monkeypatch):
        fake_module(monkeypatch, 'mmcv._ext')
        compat.require_mmcv_ops()


class TestSetup:
    @pytest.fixture(autouse=True)
    def table(self, monkeypatch) -> dict[str, str]:
        from mmengine.config import utils

        table = {'mmdet': 'mmdet', 'mmseg': 'mmsegmentation'}
        monkeypatch.setattr(utils, 'MODULE2PACKAGE', table)
        return table

    def test_table_of_config_packages(self, table):
        compat.setup()
        assert table == {'mmdet': 'mmdet', 'mmseg': 'mmseg', 'densevlm_mm': 'densevlm_mm'}

    def test_without_mmseg_its_entry_stays(self, table, monkeypatch):
        monkeypatch.setattr(compat.importlib.util, 'find_spec', lambda name: None)
        compat.setup()
        assert table['mmseg'] == 'mmsegmentation'

    def test_twice_is_once(self, table):
        compat.setup()
        once, trusted = dict(table), set(torch.serialization.get_safe_globals())
        compat.setup()
        assert table == once
        assert set(torch.serialization.get_safe_globals()) == trusted

    @pytest.mark.parametrize(('engine', 'torch_version', 'trusts'), [
        ('0.10.7', '2.6.0', True), ('0.10.7', '2.5.1+cu121', False), ('0.11.0rc3', '2.11.0', False),
    ])  # fmt: skip
    def test_trusts_checkpoints_only_where_needed(self, monkeypatch, engine, torch_version, trusts):
        trusted = []
        monkeypatch.setattr(sys.modules['mmengine'], '__version__', engine)
        monkeypatch.setattr(torch, '__version__', torch_version)
        monkeypatch.setattr(torch.serialization, 'add_safe_globals', trusted.extend)
        compat.setup()
        assert bool(trusted) is trusts


class TestCheckpointGlobals:
    @staticmethod
    def load(content: io.BytesIO) -> object:
        content.seek(0)
        with torch.serialization.safe_globals(compat.checkpoint_globals()):
            return torch.load(content, weights_only=True)

    def test_log_buffers_load(self):
        from mmengine.logging import HistoryBuffer

        checkpoint = {
            'loss': HistoryBuffer([1.0, 3.0], [1, 1]),
            'iter': np.int64(3),
            'array': np.arange(3, dtype=np.float32),
        }
        content = io.BytesIO()
        torch.save(checkpoint, content)
        loaded = self.load(content)
        assert loaded['loss'].mean() == 2.0
        assert loaded['loss'].statistics('max') == 3.0
        assert loaded['iter'] == 3
        np.testing.assert_array_equal(loaded['array'], checkpoint['array'])

    def test_without_them_they_do_not(self):
        from mmengine.logging import HistoryBuffer

        content = io.BytesIO()
        torch.save({'loss': HistoryBuffer([1.0], [1])}, content)
        content.seek(0)
        with torch.serialization.safe_globals([]), pytest.raises(pickle.UnpicklingError):
            torch.load(content, weights_only=True)

    @pytest.mark.parametrize('attribute', ['__init__', '__globals__', '_set_default_statistics'])
    def test_getattr_reaches_nothing_but_statistics(self, attribute):
        from mmengine.logging import HistoryBuffer

        content = io.BytesIO()
        torch.save({'x': GetAttribute(HistoryBuffer, attribute)}, content)
        with pytest.raises(pickle.UnpicklingError, match='not allowed in a checkpoint'):
            self.load(content)

    def test_getattr_on_other_objects_is_refused(self):
        content = io.BytesIO()
        torch.save({'x': GetAttribute(np.ndarray, 'tofile')}, content)
        with pytest.raises(pickle.UnpicklingError, match='not allowed in a checkpoint'):
            self.load(content)


class GetAttribute:
    """Pickles as a call of ``getattr``, as a file that means harm would hold it."""

    def __init__(self, owner: type, name: str) -> None:
        self.call = getattr, (owner, name)

    def __reduce__(self) -> tuple:
        return self.call


class TestReport:
    def test_command_prints_every_package(self):
        command = [sys.executable, '-m', 'densevlm_mm.compat']
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        lines = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
        assert {'platform', 'python', 'CUDA', 'open_clip', 'cv2', *compat.SUPPORTED} <= set(lines)
        assert lines['torch'].startswith(torch.__version__)

    def test_absent_and_broken_packages_are_described(self, monkeypatch):
        def import_module(name: str) -> types.ModuleType:
            if name in ('mmdet', 'mmcv._ext'):
                raise ModuleNotFoundError(f"No module named '{name}'")
            if name == 'timm':
                raise OSError('libfoo.so: cannot open shared object file')
            return types.SimpleNamespace(__version__='1.2.3')

        monkeypatch.setattr(compat.importlib, 'import_module', import_module)
        monkeypatch.setattr(compat.metadata, 'packages_distributions', lambda: {'torch': ['torch']})
        report = compat.collect_env()
        assert report['mmdet'] == "absent (No module named 'mmdet')"
        assert report['mmcv ops'] == "absent (No module named 'mmcv._ext')"
        assert report['timm'] == 'broken (OSError: libfoo.so: cannot open shared object file)'
        assert report['torch'] == f'1.2.3 (torch {metadata.version("torch")})'
        assert report['mmseg'] == '1.2.3 (not installed, found on the path)'


@pytest.mark.slow
def test_smoke_of_what_is_installed(tmp_path):
    """tools/misc/smoke.py, short of the configs, which have tests of their own; from a folder that is not ours."""
    command = [sys.executable, str(ROOT / 'tools/misc/smoke.py')]
    steps = ['imports', 'densevlm', 'detection', 'segmentation', 'training_free']
    result = subprocess.run([*command, *steps], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-1000:] + result.stderr[-3000:]
    lines = result.stdout.splitlines()
    assert [line.split()[1] for line in lines if line.startswith('ok ')] == steps
    assert lines[-1] == '5 of 5 steps work'
    assert not list(tmp_path.iterdir())


def test_smoke_goes_on_after_a_failure_and_tells_in_the_end(monkeypatch, capsys):
    def break_down() -> str:
        raise RuntimeError('no operators')

    monkeypatch.syspath_prepend(str(ROOT / 'tools' / 'misc'))
    smoke = importlib.import_module('smoke')
    monkeypatch.setattr(smoke, 'CHECKS', {'first': break_down, 'second': lambda: '3 modules'})
    monkeypatch.setattr(smoke, 'RUNS', {})
    assert smoke.main([]) == 1
    assert smoke.main(['second']) == 0
    output = capsys.readouterr()
    assert 'RuntimeError: no operators' in output.err
    lines = [line.split(' (')[0].split() for line in output.out.splitlines() if line.startswith(('ok', 'FAILED'))]
    assert lines == [['FAILED', 'first'], ['ok', 'second', '3', 'modules'], ['ok', 'second', '3', 'modules']]
    with pytest.raises(SystemExit):
        smoke.main(['third'])
