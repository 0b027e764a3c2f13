"""Teachers see the student's pixels as they were trained to."""

from __future__ import annotations

import copy

import pytest
import torch

from densevlm_mm.models.distillers.teachers import FrozenCropTeacher, FrozenDenseTeacher, compile_tower, statistics
from densevlm_mm.vlm import load_vlm
from densevlm_mm.vlm.towers import VisionTower
from densevlm_mm.vlm.towers.cpu_bfloat16 import CPU_MULTIPLIES_BFLOAT16
from densevlm_mm.vlm.towers.packed_linear import PackedLinear

OTHER = (0.5, 0.5, 0.5)


def tower_with_other_pixels(tower: VisionTower) -> VisionTower:
    other = copy.deepcopy(tower)
    other.mean = other.std = OTHER
    return other


def test_dense_teacher_renormalises_pixels(tiny_arch):
    student = load_vlm(tiny_arch()).visual
    pixels, boxes = torch.rand(1, 3, 64, 64), torch.tensor([[[0.0, 0.0, 0.5, 1.0]]])
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in statistics(student))
    seen = (pixels - mean) / std
    plain = FrozenDenseTeacher(student, 'value')(seen, boxes)
    assert torch.equal(FrozenDenseTeacher(student, 'value', statistics(student))(seen, boxes), plain)
    other = FrozenDenseTeacher(tower_with_other_pixels(student), 'value', statistics(student))(seen, boxes)
    expected = FrozenDenseTeacher(student, 'value')((pixels - 0.5) / 0.5, boxes)
    torch.testing.assert_close(other, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(other, plain, atol=1e-3)


def test_crop_teacher_normalises_bytes_its_own_way(tiny_arch):
    tower = tower_with_other_pixels(load_vlm(tiny_arch()).visual)
    crops = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    found = FrozenCropTeacher(tower)(crops)
    torch.testing.assert_close(found, tower.encode_image((crops / 255 - 0.5) / 0.5), rtol=1e-4, atol=1e-5)
    assert not found.requires_grad


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_of_a_teacher_is_its_own(tiny_arch, dtype):
    tower, other = load_vlm(tiny_arch()).visual.to(dtype), {torch.float16, torch.bfloat16} - {dtype}
    seen, boxes = torch.rand(1, 3, 64, 64), torch.tensor([[[0.0, 0.0, 0.5, 1.0]]])
    dense, crop = FrozenDenseTeacher(tower, 'value'), FrozenCropTeacher(tower)
    crops = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.autocast('cpu', dtype=dtype):
        expected = dense(seen, boxes), crop(crops)
    with torch.autocast('cpu', dtype=other.pop()):
        found = dense(seen, boxes), crop(crops)
    assert all(map(torch.equal, found, expected))


def test_a_frozen_tower_that_is_not_compiled_is_packed(tiny_arch):
    plain = load_vlm(tiny_arch()).visual
    packed, trained = copy.deepcopy(plain), copy.deepcopy(plain)
    compile_tower(packed, False, frozen=True)
    compile_tower(trained, False)
    assert not any(isinstance(module, PackedLinear) for module in trained.modules())
    pixels, boxes = torch.rand(1, 3, 64, 64).bfloat16(), torch.tensor([[[0.0, 0.0, 0.5, 1.0]]])
    features = [FrozenDenseTeacher(tower.bfloat16(), 'value')(pixels, boxes) for tower in (packed, plain)]
    has_packed = any(isinstance(module, PackedLinear) and module._remembered for module in packed.modules())
    assert has_packed == CPU_MULTIPLIES_BFLOAT16
    torch.testing.assert_close(*features, rtol=0.05, atol=0.01)
