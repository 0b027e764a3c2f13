"""What a wheel, a source archive and an editable install hold, all built from a copy of the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import densevlm_mm

ROOT = Path(__file__).parents[1]
SHIPPED = (
    'densevlm_mm', 'configs', 'tools', 'setup.py', 'pyproject.toml', 'MANIFEST.in', 'LICENSE', 'README.md',
    'CHANGELOG.md', 'CITATION.cff', 'model-index.yml',
)  # fmt: skip
PAPERS = ('LICENSE', 'CHANGELOG.md', 'CITATION.cff')
DATA_FILES = ('.json', '.txt', '.yaml', '.yml')
PROBES = ('configs/probe/probe.py', 'configs/probe/metafile.yml', 'tools/probe/probe.py')


@pytest.fixture(scope='module')
def checkout(tmp_path_factory) -> Path:
    """A copy of what is shipped, with files of its own that have to turn up in the archives."""
    copy = tmp_path_factory.mktemp('checkout') / 'repository'
    copy.mkdir()
    for name in SHIPPED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns('.mim', '__pycache__'))
        elif source.exists():
            shutil.copy2(source, copy / name)
    for name in PROBES:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text('probe = 1\n')
    (copy / 'model-index.yml').write_text('Import: []\n')
    cached = copy / 'configs/probe/__pycache__/probe.pyc'
    cached.parent.mkdir()
    cached.touch()
    return copy


def build(command: list[str], checkout: Path) -> None:
    result = subprocess.run([sys.executable, *command], cwd=checkout, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture(scope='module')
def wheel(checkout) -> zipfile.ZipFile:
    offline = ['--no-deps', '--no-build-isolation', '--no-index']
    build(['-m', 'pip', 'wheel', *offline, '-w', 'wheel', '.'], checkout)
    (path,) = (checkout / 'wheel').glob('*.whl')
    return zipfile.ZipFile(path)


@pytest.fixture(scope='module')
def requirements(wheel) -> list[Requirement]:
    (name,) = (name for name in wheel.namelist() if name.endswith('.dist-info/METADATA'))
    metadata = Parser().parsestr(wheel.read(name).decode())
    return [Requirement(line) for line in metadata.get_all('Requires-Dist')]


def names_with_extra(requirements: list[Requirement], extra: str) -> set[str]:
    return {
        canonicalize_name(item.name) for item in requirements if item.marker and item.marker.evaluate({'extra': extra})
    }


def test_version_of_the_wheel_is_the_package_s(wheel):
    assert Path(wheel.filename).name == f'densevlm_mm-{densevlm_mm.__version__}-py3-none-any.whl'


def test_wheel_holds_every_module_and_data_file(wheel, checkout):
    suffixes = ('.py', *DATA_FILES)
    files = [path for path in (checkout / 'densevlm_mm').rglob('*') if path.suffix in suffixes]
    expected = {path.relative_to(checkout).as_posix() for path in files if '.mim' not in path.parts}
    assert expected <= set(wheel.namelist())


def test_wheel_holds_the_mim_folder(wheel):
    names = set(wheel.namelist())
    assert {f'densevlm_mm/.mim/{name}' for name in (*PROBES, 'model-index.yml')} <= names
    assert 'densevlm_mm/.mim/tools/dist_train.sh' in names


def test_wheel_holds_licence_changes_and_citation(wheel, checkout):
    texts = {Path(name).name: wheel.read(name) for name in wheel.namelist() if '.dist-info/' in name}
    assert {name: texts.get(name) for name in PAPERS} == {name: (checkout / name).read_bytes() for name in PAPERS}


def test_wheel_holds_nothing_else(wheel):
    names = wheel.namelist()
    assert {name.split('/')[0].split('-')[0] for name in names} == {'densevlm_mm'}
    assert not [name for name in names if '__pycache__' in name or name.endswith('.pyc')]


def test_mmcv_is_never_a_hard_requirement(requirements):
    hard = {canonicalize_name(item.name) for item in requirements if item.marker is None}
    assert {'torch', 'open-clip-torch', 'timm', 'safetensors', 'packaging'} <= hard
    assert not hard & (names_with_extra(requirements, 'openmmlab') | names_with_extra(requirements, 'onedl'))


def test_extras_do_not_mix_originals_and_forks(requirements):
    originals, forks = names_with_extra(requirements, 'openmmlab'), names_with_extra(requirements, 'onedl')
    assert originals == {'mmengine', 'mmcv', 'mmdet', 'mmsegmentation'}
    assert forks == {'onedl-mmengine', 'onedl-mmcv', 'onedl-mmdetection', 'onedl-mmsegmentation'}


def test_the_lite_extra_needs_no_compiler(requirements):
    assert names_with_extra(requirements, 'lite') == {'mmengine', 'mmcv-lite'}


def test_extras_for_the_page_and_the_tests(requirements):
    assert names_with_extra(requirements, 'demo') == {'gradio'}
    needed = {'pytest', 'pytest-xdist', 'hypothesis', 'pyyaml', 'selenium', 'ruff'}
    assert names_with_extra(requirements, 'dev') == needed


def test_building_a_wheel_leaves_no_mim_folder_behind(wheel, checkout):
    assert not (checkout / 'densevlm_mm/.mim').exists()


def test_wheel_works_from_another_folder(wheel, tmp_path):
    wheel.extractall(tmp_path / 'site')
    program = """
import densevlm_mm
from densevlm_mm import registry
from mmengine.config import Config
print(densevlm_mm.__file__)
print(Config.fromfile("child.py").probe)
"""
    (tmp_path / 'child.py').write_text('_base_ = ["densevlm_mm::probe/probe.py"]\n')
    environment = {**os.environ, 'PYTHONPATH': str(tmp_path / 'site')}
    result = subprocess.run(
        [sys.executable, '-c', program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    file, probe = result.stdout.split()[-2:]
    assert Path(file) == tmp_path / 'site/densevlm_mm/__init__.py'
    assert probe == '1'


def test_source_archive_builds_the_same_package(checkout, wheel):
    build(['-c', "from setuptools import build_meta; build_meta.build_sdist('sdist')"], checkout)
    (archive,) = (checkout / 'sdist').glob('*.tar.gz')
    with tarfile.open(archive) as content:
        names = {name.split('/', 1)[1] for name in content.getnames() if '/' in name}
    shipped = {'setup.py', 'pyproject.toml', 'MANIFEST.in', 'tools/dist_train.sh', *PAPERS, *PROBES}
    assert shipped <= names
    package = {name for name in wheel.namelist() if name.startswith('densevlm_mm/') and '/.mim/' not in name}
    assert package <= names
    assert not [name for name in names if '.mim' in name or name.endswith('.pyc')]


def test_editable_install_links_the_mim_folder(checkout):
    build(['-c', "from setuptools import build_meta; build_meta.build_editable('editable')"], checkout)
    mim = checkout / 'densevlm_mm/.mim'
    try:
        for name in ('configs', 'tools', 'model-index.yml'):
            assert not os.path.isabs(os.readlink(mim / name))
            assert (mim / name).resolve() == checkout / name
    finally:
        shutil.rmtree(mim)
