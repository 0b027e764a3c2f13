"""tools/demo_app.py, seen by a headless browser; and what its command line refuses."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from densevlm_mm.vlm import load_vlm

ROOT = Path(__file__).parents[2]
TOOL = ROOT / 'tools' / 'demo_app.py'
PATIENCE = 180  # seconds for the page to be there
WELCOME = 'Choose an image, type class names, press Run.'
NAMES = 'car\nstuff: grass'  # of two classes, one is above the threshold
needs_gradio = pytest.mark.skipif(importlib.util.find_spec('gradio') is None, reason='Gradio is not installed')


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def clips(tmp_path_factory, tiny_arch) -> dict[str, Path]:
    """Two tiny CLIPs of random weights, whose files tell what they are."""
    folder, arch = tmp_path_factory.mktemp('clips'), tiny_arch()
    for seed, name in enumerate(('before', 'after')):
        torch.manual_seed(seed)
        meta = {'vlm': {'arch': arch, 'dense_mode': 'value'}}
        torch.save({'meta': meta, 'state_dict': load_vlm(arch).state_dict()}, folder / f'{name}.pth')
    return {path.stem: path for path in folder.iterdir()}


@pytest.fixture(scope='module')
def scene(miniworld) -> Path:
    """An image of the mini world."""
    return sorted((miniworld / 'val2017').glob('*.jpg'))[0]


@pytest.fixture(scope='module')
def address(clips, tmp_path_factory) -> Iterator[str]:
    """Where the tool serves both; it is ended afterwards."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp('server')
    environment = os.environ | {
        'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]),
        'GRADIO_TEMP_DIR': str(folder / 'uploads'),
        'OMP_NUM_THREADS': '1',
    }
    models = [clips['before'], '--compare', clips['after'], '--templates', 'none', '--device', 'cpu', '--size', '64']
    command = [sys.executable, TOOL, *models, '--vocabulary', 'car', 'ball', '--port', port, '--max-megabytes', '1']
    with (folder / 'log').open('w') as log:
        server = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log, env=environment, cwd=folder)
    try:
        deadline = time.monotonic() + PATIENCE
        while 'the page is at' not in (folder / 'log').read_text():
            assert server.poll() is None and time.monotonic() < deadline, (folder / 'log').read_text()
            time.sleep(0.1)
        yield f'http://127.0.0.1:{port}'
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def visitor(address) -> Iterator[object]:
    """Someone who has opened the page."""
    tool = load(ROOT / 'tools' / 'misc' / 'screenshot_demo_app.py')
    chrome = tool.open_browser()
    try:
        yield tool.Visitor(chrome, address)
    finally:
        chrome.quit()


needs_browser = pytest.mark.skipif(
    importlib.util.find_spec('selenium') is None or not (shutil.which('chromium') and shutil.which('chromedriver')),
    reason='Selenium, Chromium or its driver is not installed',
)


@pytest.mark.slow
@needs_gradio
@needs_browser
def test_in_a_browser(visitor, address, scene, tmp_path):
    assert visitor.message() == WELCOME and not visitor.source()

    visitor.upload(scene)
    assert visitor.message() == f'{scene.name}: 48 x 48 px'
    visitor.wait(lambda _: visitor.source())

    visitor.type_names(NAMES)
    visitor.run()
    visitor.wait(lambda _: visitor.table())
    rows = visitor.table()
    assert {row[0] for row in rows} <= {'before', 'after'} and {len(row) for row in rows} == {5}
    assert {row[1] for row in rows} <= {'car', 'grass'}
    assert all(row[2] == ('thing' if row[1] == 'car' else 'stuff') for row in rows)
    assert len(visitor.find('#picture0 img')) == len(visitor.find('#picture1 img')) == 1

    visitor.choose('segment')
    visitor.run()
    visitor.wait(lambda _: {len(row) for row in visitor.table()} == {4})
    for model in ('before', 'after'):
        shares = [float(row[3]) for row in visitor.table() if row[0] == model]
        assert sum(shares) == pytest.approx(100, abs=0.3)

    (tmp_path / 'words.png').write_text('no image at all')
    visitor.clear_upload()
    assert visitor.message() == WELCOME
    visitor.upload(tmp_path / 'words.png')
    sentence = 'words.png is not an image, or a damaged one. Choose another image, such as a JPEG or PNG.'
    assert visitor.message() == sentence
    visitor.wait(lambda _: not visitor.find('#picture0 img') and not visitor.table())
    visitor.clear_upload()
    visitor.press_run()
    visitor.wait(lambda _: visitor.message() == 'Choose an image first.')
    assert 'Traceback' not in visitor.chrome.page_source

    loaded = visitor.chrome.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert loaded and [name for name in loaded if not name.startswith((address, 'data:', 'blob:'))] == []


@pytest.fixture
def served() -> list[tuple]:
    """Pages, hosts and ports that the tool would have served."""
    return []


@pytest.fixture
def call(monkeypatch, capsys, served) -> Callable[..., tuple[int, str, str]]:
    """Runs the tool in this process, up to where it would serve; exit code, output and errors."""
    tool = load(TOOL)

    def serve(page: object, *, host: str, port: int) -> str:
        served.append((page, host, port))
        return f'http://{host}:{port}/'

    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tool, 'serve', serve)
    monkeypatch.setattr(tool, 'require_gradio', lambda: None)
    monkeypatch.setattr(tool, 'threading', SimpleNamespace(Event=lambda: SimpleNamespace(wait=interrupt)))

    def run(*arguments: object) -> tuple[int, str, str]:
        return tool.main(list(map(str, (*arguments, '--templates', 'none')))), *capsys.readouterr()

    return run


def test_listens_to_this_machine_only(call, served, clips):
    code, output, errors = call(clips['before'], '--vocabulary', 'car', 'ball', '--max-pixels', 1000)
    ((page, host, port),) = served
    assert (code, host, port, errors) == (0, '127.0.0.1', 7860, '')
    assert output.startswith('the page is at http://127.0.0.1:7860/')
    assert page.tasks == ['regions', 'segment', 'similarity'] and page.num_pictures == 1
    assert page.vocabulary.names == ('car', 'ball') and page.limits.pixels == 1000
    assert page.dense_modes()[1:3] == ['value', 'vanilla']


def test_warns_where_others_can_reach_it(call, served, clips):
    code, _, errors = call(clips['before'], '--vocabulary', 'car', '--host', '0.0.0.0')
    assert code == 0 and served[0][1] == '0.0.0.0'
    assert errors.startswith('warning: everyone who reaches this address can use the page')


def test_two_files_of_one_name_are_told_apart(call, served, clips, tmp_path):
    other = shutil.copy(clips['after'], tmp_path / 'before.pth')
    assert call(clips['before'], '--compare', other, '--vocabulary', 'car')[0] == 0
    folders = [clips['before'].parent.name, tmp_path.name]
    assert list(served[0][0].models['regions']) == [f'{folder}/before' for folder in folders]


def test_two_files_of_one_stem_are_told_apart(tmp_path):
    titles = load(TOOL).titles
    files = [str(tmp_path / f'densevlm{suffix}') for suffix in ('.pt', '.pth')]
    assert titles(*files) == {'densevlm.pt': files[0], 'densevlm.pth': files[1]}
    assert titles(files[0], None) == {'densevlm': files[0]}
    with pytest.raises(ValueError, match='names the same file'):
        titles(files[0], f'{tmp_path}/../{tmp_path.name}/densevlm.pt')


@pytest.mark.parametrize(('arguments', 'error'), [
    (['gone.pth'], 'error: .*gone.pth'),
    (['{before}', '--compare', 'gone.pth'], 'error: .*gone.pth'),
    (['{before}', '--compare', '{before}'], 'error: --compare names the same file: .*before.pth'),
    (['{before}', '--vocabulary', 'none.json'], 'error: .*none.json'),
    (['{before}', '--max-megabytes', '0'], 'error: limits of images must be above 0'),
])  # fmt: skip
def test_what_cannot_be_served(call, served, clips, arguments, error):
    arguments = [argument.format(**clips) for argument in arguments]
    if '--vocabulary' not in arguments:
        arguments += ['--vocabulary', 'car']
    code, _, errors = call(*arguments)
    assert code == 2 and re.match(error, errors) and not served
