"""CLIPSelf: what it computes, what learns, and that its teacher never changes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from mmengine.logging import MessageHub
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor

from densevlm_mm.datasets import grid_boxes
from densevlm_mm.models import CLIPSelf
from densevlm_mm.models.distillers.pixels import BYTES, Renormalize
from densevlm_mm.models.distillers.step_random import step_generator
from densevlm_mm.registry import MODELS
from densevlm_mm.vlm import load_vlm


@pytest.fixture
def checkpoint(tiny_arch, tmp_path) -> dict:
    """Arguments of `load_vlm` for a model with weights on disk."""
    torch.save({'state_dict': load_vlm(tiny_arch()).state_dict()}, tmp_path / 'student.pt')
    return {'arch': tiny_arch(), 'checkpoint': str(tmp_path / 'student.pt')}


@pytest.fixture
def build(checkpoint) -> Callable[..., CLIPSelf]:
    def make(**changes: object) -> CLIPSelf:
        config = {
            'type': 'densevlm_mm.CLIPSelf',
            'student': {**checkpoint, 'trainable_blocks': 2},
            'loss': {'type': 'densevlm_mm.CosineLoss'},
        }
        return MODELS.build({**config, **changes})

    return make


@pytest.fixture
def batch() -> tuple[Tensor, list[BaseDataElement]]:
    """Two images of 64 px with grids of 2 x 3 and 2 x 2, and crops of 32 px."""
    samples = []
    for rows, cols in ((2, 3), (2, 2)):
        regions = InstanceData(boxes=grid_boxes(64, 64, rows, cols) / 64)
        regions.crops = torch.randint(256, (rows * cols, 3, 32, 32), dtype=torch.uint8)
        samples.append(BaseDataElement(gt_regions=regions))
    return torch.randn(2, 3, 64, 64), samples


@pytest.fixture
def at_step():
    """Pretends that a run is at some step."""
    hub = MessageHub.get_current_instance()
    yield lambda step: hub.update_info('iter', step)
    hub.runtime_info.pop('iter', None)


def test_loss_is_one_minus_the_mean_cosine_with_the_crops(build, checkpoint, batch):
    images, samples = batch
    vlm = load_vlm(**checkpoint)
    crops = torch.cat([sample.gt_regions.crops for sample in samples]).double() / 255
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (vlm.visual.mean, vlm.visual.std))
    expected = 1 - F.cosine_similarity(
        vlm.encode_boxes(images, [sample.gt_regions.boxes for sample in samples]),
        vlm.encode_image(((crops - mean) / std).float()),
    )
    losses = build()(images, samples, mode='loss')
    torch.testing.assert_close(losses['loss_content'], expected.mean(), rtol=1e-4, atol=1e-5)
    assert losses['num_regions'] == 10


def test_training_lowers_the_loss_and_leaves_the_teacher_bit_identical(build, batch):
    model = build().train()
    before = {name: value.clone() for name, value in model.teacher.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = model(*batch, mode='loss')['loss_content']
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[0]
    assert all(torch.equal(before[name], value) for name, value in model.teacher.state_dict().items())
    changed = [not torch.equal(before[f'tower.{n}'], p) for n, p in model.student.visual.named_parameters()]
    assert any(changed)


def test_gradients_reach_exactly_what_trains(build, batch):
    model = build().train()
    model(*batch, mode='loss')['loss_content'].backward()
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == trainable
    assert trainable and all('.blocks.' in name for name in trainable)
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.teacher.parameters())


def test_teacher_is_no_part_of_the_model(build, checkpoint):
    model = build().train()
    assert set(model.state_dict()) == {f'vlm.{name}' for name in load_vlm(checkpoint['arch']).state_dict()}
    own = {id(parameter) for parameter in model.parameters()}
    assert not any(id(parameter) in own for parameter in model.teacher.parameters())
    assert not any(module.training for module in model.teacher.modules())
    model.double()
    assert {parameter.dtype for parameter in model.teacher.parameters()} == {torch.float64}


def test_random_student_has_itself_as_teacher(build, tiny_arch):
    model = build(student={'arch': tiny_arch(), 'trainable_blocks': 1})
    for student, teacher in zip(model.student.visual.parameters(), model.teacher.parameters(), strict=True):
        assert torch.equal(student, teacher)


def test_another_teacher(build, tiny_arch, batch):
    model = build(teacher={'arch': tiny_arch(width=48)})
    assert model(*batch, mode='loss')['loss_content'].isfinite()
    with pytest.raises(ValueError, match='embeds images in 24 dimensions, the student in 16'):
        build(teacher={'arch': tiny_arch(embed_dim=24)})


def test_samples_without_crops(build, batch):
    images, samples = batch
    del samples[1].gt_regions.crops
    with pytest.raises(ValueError, match='have no crops: put .*CropRegions.* before PackRegions'):
        build()(images, samples, mode='loss')


def test_scale_of_a_step_depends_on_its_number_only(build, batch, at_step):
    model, other = build(multiscale=(32, 48, 64)), build(multiscale=(32, 48, 64))

    def sides(scaled: CLIPSelf) -> list[int]:
        found = []
        for step in range(30):
            at_step(step)
            found.append(scaled.rescale(batch[0]).shape[-1])
        return found

    expected = sides(model)
    torch.rand(5)  # the global generator has no say
    assert sides(other) == expected and set(expected) == {32, 48, 64}
    assert sides(build(multiscale=(32, 48, 64), seed=1)) != expected
    at_step(29)
    assert model.rescale(batch[0]).shape[-1] == expected[-1]  # as after resuming


def test_images_are_really_resized(build, batch):
    images, samples = batch
    model = build(multiscale=[32])
    small = F.interpolate(images, size=(32, 32), mode='bilinear', align_corners=False)
    torch.testing.assert_close(model.rescale(images), small)
    found = model(images, samples, mode='loss')['loss_content']
    torch.testing.assert_close(found, build()(small, samples, mode='loss')['loss_content'])
    assert build().rescale(images) is images


def test_steps_draw_differently(at_step):
    draws = []
    for step in (0, 1, 0):
        at_step(step)
        draws.append(step_generator(0).integers(2**31))
    assert draws[0] == draws[2] != draws[1]


def test_renormalised_pixels():
    pixels = torch.rand(2, 3, 4, 4, dtype=torch.float64)
    first, second = ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)), ((0.5, 0.5, 0.5), (0.25, 0.5, 1.0))

    def normalized(statistics) -> Tensor:
        mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in statistics)
        return (pixels - mean) / std

    found = Renormalize(first, second)(normalized(first).float())
    torch.testing.assert_close(found, normalized(second).float(), rtol=1e-5, atol=1e-6)
    image = normalized(first).float()
    assert Renormalize(first, first)(image) is image
    black_and_white = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2).expand(1, 3, 1, 2)
    torch.testing.assert_close(Renormalize(BYTES, second)(black_and_white)[0, 0, 0], torch.tensor([-2.0, 2.0]))
    assert not Renormalize(first, second).state_dict()
