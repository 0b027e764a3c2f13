"""The command line, with models of no size."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pytest

TOOL = Path(__file__).parents[2] / 'tools' / 'analysis_tools' / 'benchmark.py'
PROJECT, BASELINE = 'densevlm_mm', 'reference-like'


@pytest.fixture
def run(tmp_path) -> Callable[..., dict[str, Any]]:
    """Runs the tool with --tiny; the file that it wrote."""
    main = runpy.run_path(str(TOOL))['main']

    def call(*arguments: str) -> dict[str, Any]:
        out = tmp_path / 'out' / 'figures.json'
        assert main([*arguments, '--tiny', '--repeats', '2', '--warmup', '0', '--out', str(out)]) == 0
        return json.loads(out.read_text())

    return call


class Neighbour:
    """A `Resident` of this process: another one takes longer to start than all that is measured here."""

    def __init__(self, make: Callable[..., Any], *args: Any) -> None:
        self.made = make(*args)

    def __enter__(self) -> Neighbour:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def ask(self, method: str, *args: Any) -> Any:
        return getattr(self.made, method)(*args)


@pytest.fixture
def in_this_process(monkeypatch) -> None:
    monkeypatch.setattr('densevlm_mm.benchmark.step.Resident', Neighbour)


def numbers(content: Any) -> Iterator[float]:
    if isinstance(content, dict):
        for value in content.values():
            yield from numbers(value)
    elif isinstance(content, float):
        yield content


def check(document: dict[str, Any], candidates: list[str]) -> None:
    """What holds for all of them."""
    assert document['command'].startswith('python tools/analysis_tools/benchmark.py ')
    assert {'benchmark', 'date', 'machine', 'options', 'measurements'} <= document.keys()
    for measurement in document['measurements']:
        assert list(measurement['candidates']) == candidates
        assert list(measurement['ratios']) == candidates[1:]
        assert min(numbers(measurement['candidates'])) > 0
        for candidate in measurement['candidates'].values():
            for stage in candidate['seconds'].values():
                assert stage['min'] <= stage['median'] <= stage['max']
            assert candidate['images_per_second'] * candidate['seconds']['total']['median'] == pytest.approx(
                measurement['images']
            )
        for ratio in measurement['ratios'].values():
            assert len(ratio['pairs']) == 2
            assert ratio['median'] == median(ratio['pairs'])


def test_step(run, capsys, tmp_path):
    profile = tmp_path / 'profile.txt'
    document = run('step', '--classes', '5', '9', '--profile', str(profile), '--matmul-size', '64')
    check(document, [PROJECT, BASELINE])
    assert [measurement['setting'] for measurement in document['measurements']] == ['5 classes', '9 classes']
    for measurement in document['measurements']:
        ours, theirs = (measurement['logs'][name]['loss'] for name in (PROJECT, BASELINE))
        assert ours == pytest.approx(theirs, rel=1e-3)
    flops = document['flops']
    assert flops['per_image']['total'] == sum(flops['per_image'][k] for k in ('teacher', 'student', 'backward'))
    ours = document['measurements'][0]['candidates'][PROJECT]
    done = ours['images_per_second'] * flops['per_image']['total']
    assert ours['utilisation'] == pytest.approx(done / flops['matmul_rates']['float32'])
    for memory in document['memory'].values():
        assert 0 < memory['built'] <= memory['peak']
    assert document['profile'][0]['seconds'] > 0
    assert profile.exists()
    shown = capsys.readouterr().out
    for words in ('5 classes; 2 images', 'backward, ms', f'time / that of {PROJECT}', 'GFLOP per image', 'peak'):
        assert words in shown


@pytest.mark.usefixtures('in_this_process')
def test_step_alone(run):
    document = run('step', '--baseline', 'none', '--no-memory', '--load', '--dtype', 'bfloat16')
    check(document, [PROJECT])
    assert 'memory' not in document
    assert document['options']['dtype'] == 'bfloat16'
    assert list(document['flops']['matmul_rates']) == ['bfloat16']
    assert 'load' in document['measurements'][0]['candidates'][PROJECT]['seconds']


@pytest.mark.usefixtures('in_this_process')
def test_share_is_that_of_a_candidate_s_own_dtype(run):
    document = run('step', '--no-memory', '--dtype', 'bfloat16', '--baseline-dtype', 'float32', '--matmul-size', '64')
    flops, candidates = document['flops'], document['measurements'][0]['candidates']
    for name, dtype in ((PROJECT, 'bfloat16'), (BASELINE, 'float32')):
        done = candidates[name]['images_per_second'] * flops['per_image']['total']
        assert candidates[name]['utilisation'] == pytest.approx(done / flops['matmul_rates'][dtype])


@pytest.mark.usefixtures('in_this_process')
def test_warm_cache_knows_all_photographs_of_a_small_batch(run):
    options = ('--baseline', 'none', '--no-memory', '--teacher-cache', 'warm', '--load', '--batch-size', '1', '3')
    for measurement in run('step', *options)['measurements']:
        assert measurement['logs'][PROJECT]['cached_share'] == 1


@pytest.mark.usefixtures('in_this_process')
def test_utilisation_leaves_out_a_cached_teacher(run):
    document = run('step', '--baseline', 'none', '--no-memory', '--teacher-cache', 'warm', '--warmup', '0')
    (measurement,) = document['measurements']
    assert measurement['logs'][PROJECT]['cached_share'] == 1
    flops, ours = document['flops'], measurement['candidates'][PROJECT]
    learns = flops['per_image']['student'] + flops['per_image']['backward']
    assert ours['utilisation'] == pytest.approx(ours['images_per_second'] * learns / flops['matmul_rates']['float32'])


@pytest.mark.usefixtures('in_this_process')
def test_several_batches_one_after_the_other(run):
    document = run('step', '--no-memory', '--batch-size', '3', '1', '--teacher-cache', 'warm', '--warmup', '0')
    check(document, [PROJECT, BASELINE])
    assert [measurement['images'] for measurement in document['measurements']] == [1, 3]
    regions = []
    for measurement in document['measurements']:
        assert measurement['logs'][PROJECT]['cached_share'] == 1
        regions.append(measurement['logs'][PROJECT]['num_regions'])
    assert regions[0] < regions[1]


def test_loader(run):
    document = run('loader')
    check(document, [PROJECT, f'{PROJECT}, resized by torch', f'{PROJECT}, cached', BASELINE])
    for candidate in document['measurements'][0]['candidates'].values():
        assert list(candidate['seconds']) == ['load', 'transfer', 'total']
    assert document['mean_file_bytes'] > 50_000


def test_loader_with_workers(run):
    check(run('loader', '--num-workers', '1', '--baseline', 'none', '--images', '2'), [
        PROJECT, f'{PROJECT}, resized by torch', f'{PROJECT}, cached',
    ])  # fmt: skip


def test_loader_with_growing_annotation_files(run, capsys):
    document = run('loader', '--sweep-size', '5', '50')
    check(document, ['5 entries', '50 entries'])
    (measurement,) = document['measurements']
    assert list(measurement['candidates']['5 entries']['seconds']) == ['lookup', 'pipeline', 'total']
    assert min(measurement['seconds_to_build'].values()) > 0
    assert 'built in s' in capsys.readouterr().out


def test_evaluate(run):
    document = run('evaluate')
    check(document, [PROJECT, BASELINE])
    assert [m['setting'] for m in document['measurements']] == ['boxes and masks', 'boxes and masks, and crops']


def test_evaluate_without_crops(run):
    document = run('evaluate', '--no-crops', '--regions', '2', '--classes', '4')
    assert [m['setting'] for m in document['measurements']] == ['boxes and masks']
    assert document['options']['regions'] == 2


def test_inference(run):
    document = run('inference', '--batch-size', '2', '--baseline', 'reference-like-fused')
    check(document, [PROJECT, 'reference-like-fused'])
    assert document['measurements'][0]['images'] == 2


def test_what_is_asked_for_wins_over_tiny(run):
    options = run('inference', '--image-size', '40')['options']
    assert (options['arch'], options['image_size']) == ('tiny-student', 40)


@pytest.mark.parametrize(('arguments', 'message'), [
    (['inference', '--repeats', '0'], 'at least one repeat'),
    (['inference', '--arch', 'nothing'], "unknown arch 'nothing'"),
    (['step', '--classes', '1'], 'at least one thing'),
])  # fmt: skip
def test_what_cannot_be_run_is_said(arguments, message, capsys):
    main = runpy.run_path(str(TOOL))['main']
    assert main([*arguments, '--tiny']) == 2
    assert message in capsys.readouterr().err


def test_defaults_are_those_of_the_package():
    tool = runpy.run_path(str(TOOL))
    args = vars(tool['parse_args'](['step']))
    options = tool['BENCHMARKS']['step'][0]()
    assert {name: args[name] for name in vars(options)} == vars(options)
