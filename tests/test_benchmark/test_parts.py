"""Options, made-up inputs, the machine, the profiler."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.autograd import DeviceType

from densevlm_mm.benchmark.machine import describe_machine, matmul_rate, memory_in_use, peak_memory
from densevlm_mm.benchmark.options import InferenceOptions, Options, StepOptions
from densevlm_mm.benchmark.profiling import _largest, profile_to
from densevlm_mm.benchmark.synthetic import (
    class_rows,
    ellipse_masks,
    num_things,
    random_boxes,
    write_annotations,
    write_photos,
)


@pytest.mark.parametrize(('make', 'options', 'message'), [
    (Options, {'baseline': 'other'}, "baseline must be one of .* got 'other'"),
    (Options, {'repeats': 0}, 'at least one repeat'),
    (StepOptions, {'dtype': 'int8'}, 'no floating dtype'),
    (StepOptions, {'batch_sizes': (4, 0)}, 'at least one image'),
    (StepOptions, {'classes': (1, 5)}, 'at least one thing and one stuff class'),
])  # fmt: skip
def test_refused_options(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_a_gpu_that_is_not_there():
    with pytest.raises(ValueError, match="device 'cuda' is not there"):
        InferenceOptions(device='cuda')


def test_without_a_baseline_there_is_one_candidate():
    assert Options(baseline='none').candidates == ('densevlm_mm',)
    assert Options().candidates == ('densevlm_mm', 'reference-like')


@given(st.integers(2, 6000))
def test_there_are_things_and_stuff(classes):
    assert 0 < num_things(classes) < classes


def test_released_share_of_things():
    assert num_things(316) == 204


def test_photos_have_coco_s_size_and_weight(tmp_path):
    names = write_photos(tmp_path, 2)
    sizes = [os.path.getsize(tmp_path / name) for name in names]
    assert Image.open(tmp_path / names[0]).size == (640, 480)
    assert all(100_000 < size < 220_000 for size in sizes)
    assert sizes[0] != sizes[1]


def test_annotations_point_at_the_same_images_again(tmp_path):
    write_annotations(tmp_path / 'a.json', ['x.jpg', 'y.jpg'], 3)
    images = json.loads((tmp_path / 'a.json').read_text())['images']
    assert [image['file_name'] for image in images] == ['x.jpg', 'y.jpg', 'x.jpg']
    assert [image['id'] for image in images] == [0, 1, 2]


def test_class_rows_are_reproducible_unit_vectors():
    rows = class_rows(5, 16)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(5))
    assert torch.equal(rows, class_rows(5, 16))


def test_masks_are_the_ellipses_of_their_boxes():
    boxes = random_boxes(6, torch.Generator().manual_seed(0))
    assert ((boxes[:, :2] >= 0) & (boxes[:, 2:] <= 1) & (boxes[:, :2] < boxes[:, 2:])).all()
    masks = ellipse_masks(boxes, (200, 100))
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    torch.testing.assert_close(masks.mean((1, 2)), torch.pi / 4 * area, rtol=0.05, atol=1e-3)


def test_machine():
    machine = describe_machine('cpu')
    assert machine['cores'] >= 1
    assert machine['threads'] == torch.get_num_threads()
    assert machine['torch'] == torch.__version__
    assert machine['cpu']


def test_rate_of_matrix_products():
    assert matmul_rate('cpu', torch.float32, 64) > 1e6


@pytest.mark.skipif(memory_in_use('cpu') is None, reason='only Linux tells')
def test_memory_is_in_use_until_it_is_freed_and_its_peak_is_kept():
    before = memory_in_use('cpu')
    ballast = torch.ones(400_000_000, dtype=torch.uint8)
    with_ballast = memory_in_use('cpu')
    del ballast
    assert with_ballast - before > 300_000_000
    assert memory_in_use('cpu') < with_ballast - 300_000_000
    assert peak_memory('cpu') > with_ballast - 10_000_000  # Linux keeps count of pages a little behind


def test_kernels_of_a_gpu_count_once():
    def event(key: str, seconds: int, kind: DeviceType, annotation: bool = False) -> SimpleNamespace:
        return SimpleNamespace(
            key=key, self_device_time_total=seconds, count=1, device_type=kind, is_user_annotation=annotation
        )

    averages = [
        event('aten::mm', 300, DeviceType.CPU),
        event('gemm', 300, DeviceType.CUDA),
        event('add', 100, DeviceType.CUDA),
        event('Optimizer.step', 400, DeviceType.CUDA, True),
    ]
    costs = _largest(averages, 'self_device_time_total')
    assert [(cost['operator'], cost['share']) for cost in costs] == [('gemm', 0.75), ('add', 0.25)]


def test_profile_names_the_largest_costs(tmp_path):
    matrix = torch.randn(256, 256)
    costs = profile_to(str(tmp_path / 'deep' / 'profile.txt'), lambda: matrix @ matrix, 'cpu')
    assert costs[0]['operator'] == 'aten::mm'
    assert costs[0]['seconds'] > 0
    assert sum(cost['share'] for cost in costs) <= 1 + 1e-9
    assert 'aten::mm' in (tmp_path / 'deep' / 'profile.txt').read_text()
