"""The memory that segmenting takes, of a model of no size."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from densevlm_mm.benchmark.machine import peak_memory
from densevlm_mm.benchmark.synthetic import arch_named

TOOL = Path(__file__).parents[2] / 'tools' / 'analysis_tools' / 'segmentation_memory.py'


@pytest.mark.skipif(peak_memory('cpu') is None, reason='this system does not tell how much memory is in use')
def test_figures(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv('DENSEVLM_CACHE', str(tmp_path))
    tool = runpy.run_path(str(TOOL))
    tool['main'](['--arch', 'tiny-student', '--size', '40', '60', '--classes', '50', '--window', '32', '--stride', '8'])
    printed = capsys.readouterr().out
    assert 'tiny-student, window 32, stride 8; 40x60 px, 50 classes' in printed
    before, peak = figures(printed)
    assert 0 < before <= peak
    assert not list(tmp_path.iterdir())  # embeddings of random weights are not kept


@pytest.mark.skipif(peak_memory('cpu') is None, reason='this system does not tell how much memory is in use')
def test_a_segmentor_of_a_config(capsys, monkeypatch, tmp_path):
    """Neither its checkpoint nor its classes are needed."""
    monkeypatch.setenv('DENSEVLM_CACHE', str(tmp_path))
    vlm = {'arch': arch_named('tiny-student'), 'checkpoint': 'checkpoints/gone.pt'}
    model = {'type': 'densevlm_mm.CATSeg', 'vlm': vlm, 'vocabulary': ['gone'], 'guidance_blocks': (0, 1)}
    model |= {'templates': ['{}'], 'clip_size': 32, 'squash_size': 48, 'window': 32}
    (tmp_path / 'config.py').write_text(f'model = {model}')
    config = str(tmp_path / 'config.py')
    tool = runpy.run_path(str(TOOL))
    options = ['--cfg-options', 'model.views_at_once=1', 'model.stride=16']
    tool['main'](['--config', config, '--size', '40', '60', '--classes', '5', *options])
    printed = capsys.readouterr().out
    assert f'{config}, model.views_at_once=1, model.stride=16; 40x60 px, 5 classes' in printed
    before, peak = figures(printed)
    assert 0 < before <= peak


def figures(printed: str) -> list[int]:
    """MiB in use with the model loaded, and at the peak."""
    found = [re.search(rf'{what}: +([\d,]+) MiB', printed)[1] for what in ('loaded', 'peak')]
    return [int(figure.replace(',', '')) for figure in found]


def test_names_differ():
    names = runpy.run_path(str(TOOL))['class_names'](847)
    assert len(set(names)) == 847
    assert {word for name in names for word in name.split()} == {'thing', 'stuff'}
