"""The memory that segmenting takes, of a model of no size."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from densevlm_mm.benchmark.machine import peak_memory

TOOL = Path(__file__).parents[2] / 'tools' / 'analysis_tools' / 'segmentation_memory.py'


@pytest.mark.skipif(peak_memory('cpu') is None, reason='this system does not tell how much memory is in use')
def test_figures(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv('DENSEVLM_CACHE', str(tmp_path))
    tool = runpy.run_path(str(TOOL))
    tool['main'](['--arch', 'tiny-student', '--size', '40', '60', '--classes', '50', '--window', '32', '--stride', '8'])
    printed = capsys.readouterr().out
    assert 'tiny-student, 40x60 px, 50 classes, window 32, stride 8' in printed
    figures = [re.search(rf'{what}: +([\d,]+) MiB', printed)[1] for what in ('loaded', 'peak')]
    before, peak = (int(figure.replace(',', '')) for figure in figures)
    assert 0 < before <= peak
    assert not list(tmp_path.iterdir())  # embeddings of random weights are not kept


def test_names_differ():
    names = runpy.run_path(str(TOOL))['class_names'](847)
    assert len(set(names)) == 847
    assert {word for name in names for word in name.split()} == {'thing', 'stuff'}
