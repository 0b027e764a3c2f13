"""tools/sweep_alpha.py: its ends are the two checkpoints, its middle is what WeightEnsembleHook saves."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
import torch

from densevlm_mm.hooks.weight_ensemble_hook import read_raw_weights
from densevlm_mm.models import region_classifier
from densevlm_mm.vlm import load_vlm, text_embeddings

ROOT = Path(__file__).parents[2]


def test_counters_of_batch_norms_are_not_blended():
    module = runpy.run_path(str(ROOT / 'tools' / 'sweep_alpha.py'))
    student, original = ({'w': torch.full((2,), v), 'seen': torch.tensor(int(v))} for v in (3.0, 1.0))
    blended = module['blend'](student, original, 0.5)
    assert blended['w'].tolist() == [2.0, 2.0] and blended['seen'] == 3


@pytest.fixture
def sweep(tool, configs, tmp_path, capsys):
    """Figures by alpha, and the whole file."""

    def run(student: Path, original: Path, *alphas: float, **options: object) -> tuple[dict[float, dict], dict]:
        arguments = ('--work-dir', tmp_path / 'run', *(('--alphas', *alphas) if alphas else ()))
        tool('sweep_alpha', configs['evaluate'], student, original, *arguments, **options)
        content = json.loads((tmp_path / 'run' / 'alpha_sweep.json').read_text())
        return {entry['alpha']: entry['metrics'] for entry in content['sweep']}, content

    return run


@pytest.fixture
def figures(tool, configs, tmp_path):
    def evaluate(checkpoint: Path) -> dict[str, float]:
        out = tmp_path / 'figures.json'
        tool('test', configs['evaluate'], checkpoint, '--work-dir', tmp_path / 'one', test_evaluator__out_json=out)
        return json.loads(out.read_text())['metrics']

    return evaluate


def test_ends_and_the_blend_that_was_saved(sweep, figures, trained, checkpoints, capsys):
    """The run saved its blend of 0.75 and the raw weights beside it: these are what is swept."""
    saved = trained / 'iter_10.pth'
    found, content = sweep(saved, checkpoints['student'], 0, 0.75, 1, load_from=saved)
    assert content['raw'] is True
    assert found[0] == pytest.approx(figures(checkpoints['student']))
    assert found[0.75] == pytest.approx(figures(saved), abs=1e-3)
    table = capsys.readouterr().out
    assert [line.split() for line in table.splitlines() if line.startswith('alpha')][0] == ['alpha', '0', '0.75', '1']
    assert any(line.split()[:2] == ['bias', f'{found[0]["bias"]:.2f}'] for line in table.splitlines())


def test_raw_weights_are_the_students(trained, checkpoints, tiny_arch):
    raw, blend = read_raw_weights(trained / 'iter_10.pth'), load_vlm(tiny_arch(), trained / 'iter_10.pth').state_dict()
    original = load_vlm(tiny_arch(), checkpoints['student']).state_dict()
    assert raw and set(raw) < set(blend)
    for name, value in raw.items():
        torch.testing.assert_close(0.75 * value + 0.25 * original[name], blend[name])
    assert any(not torch.equal(value, blend[name]) for name, value in raw.items())
    assert read_raw_weights(checkpoints['student']) == {}


def test_plain_files_are_blended_tensor_by_tensor(sweep, figures, tiny_arch, checkpoints, tmp_path, monkeypatch):
    """Two files of different origin, their blend made here; the text towers differ, and so do the embeddings."""
    original = load_vlm(tiny_arch(), checkpoints['student']).state_dict()
    torch.manual_seed(5)
    student = {name: value + 0.3 * torch.randn_like(value) for name, value in original.items()}
    torch.save(
        {'epoch': 6, 'state_dict': {f'module.{name}': value for name, value in student.items()}}, tmp_path / 's.pt'
    )
    blended = {name: 0.3 * student[name] + 0.7 * original[name] for name in original}
    torch.save(blended, tmp_path / 'blend.pt')
    torch.save(student, tmp_path / 'plain.pt')
    computed = count_embeddings(monkeypatch)
    found, content = sweep(tmp_path / 's.pt', checkpoints['student'], 0.3, 1)
    assert content['raw'] is False and len(computed) == 2
    assert found[0.3] == pytest.approx(figures(tmp_path / 'blend.pt'), abs=1e-3)
    assert found[1] == pytest.approx(figures(tmp_path / 'plain.pt'))
    assert found[0.3] != found[1]


def count_embeddings(monkeypatch) -> list[int]:
    """Grows by one whenever class embeddings are computed and not found."""
    computed = []
    original = text_embeddings.compute_class_embeddings

    def count(*args, **kwargs):
        computed.append(len(computed))
        return original(*args, **kwargs)

    for module in (text_embeddings, region_classifier):
        monkeypatch.setattr(module, 'compute_class_embeddings', count)
    return computed


def test_equal_text_towers_share_their_embeddings(sweep, trained, checkpoints, monkeypatch, tmp_path):
    monkeypatch.setenv('DENSEVLM_CACHE', str(tmp_path / 'empty'))
    computed = count_embeddings(monkeypatch)
    found, _ = sweep(trained / 'iter_10.pth', checkpoints['student'])
    assert list(found) == [0, 0.5, 0.7, 0.9, 1] and len(computed) == 1


def test_arguments_are_checked(sweep, trained, checkpoints):
    with pytest.raises(SystemExit):
        sweep(trained / 'iter_10.pth', checkpoints['student'], 0, 1.5)
    with pytest.raises(ValueError, match='teacher.pt does not fit this architecture'):
        sweep(trained / 'iter_10.pth', checkpoints['teacher'])
    with pytest.raises(ValueError, match='gone.pt does not exist'):
        sweep(trained / 'iter_10.pth', Path('gone.pt'))
