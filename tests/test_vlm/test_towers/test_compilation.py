"""Options of compiled towers."""

from __future__ import annotations

import pytest
import torch

from densevlm_mm.vlm.architectures import build_vision_tower, resolve_arch
from densevlm_mm.vlm.towers.compilation import compile_options, has_cuda_graphs

ALIGNED, ODD = torch.zeros(64, 128), torch.zeros(2730, 64)


def test_torch_takes_the_options():
    for options in ({}, {'mode': 'max-autotune', 'dynamic': False}, {'options': {'triton.cudagraphs': True}}):
        torch.compile(torch.sin, **compile_options(options, [ALIGNED]))


def test_a_mode_is_written_out():
    compiled = compile_options({'mode': 'reduce-overhead', 'dynamic': False}, [ALIGNED])
    assert compiled == {'dynamic': False, 'options': {'comprehensive_padding': False, 'triton.cudagraphs': True}}


def test_rows_of_matrices_that_are_not_aligned_stay_padded():
    vectors = torch.zeros(2730)
    assert compile_options({}, [ALIGNED, vectors])['options'] == {'comprehensive_padding': False}
    assert compile_options({}, [ALIGNED, ODD])['options'] == {}


def test_a_config_has_the_last_word():
    ours = {'comprehensive_padding': True, 'triton.cudagraphs': False}
    assert compile_options({'mode': 'reduce-overhead', 'options': ours}, [ALIGNED])['options'] == ours


def test_other_backends_get_what_the_config_says():
    options = {'backend': 'aot_eager', 'fullgraph': True}
    assert compile_options(options, [ALIGNED]) == options


def test_an_unknown_mode_is_an_error():
    with pytest.raises(RuntimeError, match='fastest'):
        compile_options({'mode': 'fastest'}, [ALIGNED])


@pytest.mark.parametrize('options', [{'mode': 'reduce-overhead'}, {'options': {'triton.cudagraphs': True}}])
def test_options_with_cuda_graphs(options):
    assert has_cuda_graphs(compile_options(options, [ALIGNED]))


@pytest.mark.parametrize('options', [{}, {'backend': 'aot_eager'}, {'mode': 'max-autotune-no-cudagraphs'}])
def test_options_without_cuda_graphs(options):
    assert not has_cuda_graphs(compile_options(options, [ALIGNED]))


@pytest.mark.parametrize(('mode', 'marks'), [('reduce-overhead', 2), ('default', 0)])
def test_each_pass_is_a_step_of_cuda_graphs(mode, marks, tiny_arch, monkeypatch):
    seen = []
    monkeypatch.setattr(torch.compiler, 'cudagraph_mark_step_begin', lambda: seen.append(1))
    tower = build_vision_tower(resolve_arch(tiny_arch('openai')))
    tower.compile_blocks(mode=mode)
    for _ in range(2):
        tower.run(torch.randn(1, 3, 48, 64), depth=0)  # no block runs, so that nothing is compiled here
    assert len(seen) == marks
