"""DeCLIP: both terms, what they train, and the foundation models whose correlations it learns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor

from densevlm_mm.datasets import grid_boxes
from densevlm_mm.models import CorrelationLoss, DeCLIP, TimmFoundationModel, VLMFoundationModel
from densevlm_mm.models.distillers.teachers import statistics
from densevlm_mm.registry import MODELS
from densevlm_mm.vlm import load_vlm

BLOCK = 'vlm.visual.trunk.blocks.1'
SMALL_VIT = 'test_vit'


@pytest.fixture
def build(tiny_arch, tmp_path) -> Callable[..., DeCLIP]:
    torch.save({'state_dict': load_vlm(tiny_arch(width=48)).state_dict()}, tmp_path / 'foundation.pt')

    def make(**changes: object) -> DeCLIP:
        config = {
            'type': 'densevlm_mm.DeCLIP',
            'student': {'arch': tiny_arch(), 'trainable_blocks': 2, 'dense_mode': 'csa'},
            'foundation': {
                'type': 'densevlm_mm.VLMFoundationModel',
                'vlm': {'arch': tiny_arch(width=48), 'checkpoint': str(tmp_path / 'foundation.pt')},
            },
            'content_loss': {'type': 'densevlm_mm.CosineLoss'},
            'context_loss': {'type': 'densevlm_mm.CorrelationLoss', 'loss_weight': 2.0},
        }
        return MODELS.build({**config, **changes})

    return make


@pytest.fixture
def batch() -> tuple[Tensor, list[BaseDataElement]]:
    regions = InstanceData(boxes=grid_boxes(64, 64, 2, 2) / 64)
    regions.crops = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    return torch.randn(1, 3, 64, 64), [BaseDataElement(gt_regions=regions)]


def test_content_is_the_dense_map_and_context_what_it_attends_with(build, batch):
    images, samples = batch
    model = build(context='q')
    losses = model(images, samples, mode='loss')
    targets = model.teacher['crops'](samples[0].gt_regions.crops)
    features = model.student.encode_boxes(images, [samples[0].gt_regions.boxes])
    expected = 1 - F.cosine_similarity(features, targets).mean()
    torch.testing.assert_close(losses['loss_content'], expected, rtol=1e-4, atol=1e-5)
    _, queries = model.student.visual.encode_dense_and_context(images, 'csa', 'q')
    correlated = model.teacher['foundation'].patch_features(images)
    assert correlated.shape == (1, 48, 8, 8)
    torch.testing.assert_close(losses['loss_context'], CorrelationLoss(2.0)(queries, correlated))


@pytest.mark.parametrize(('context', 'trains'), [('q', {'q_proj'}), ('qk', {'q_proj', 'k_proj'})])
def test_context_trains_its_projections(build, batch, context, trains):
    """And not the values, nor anything behind the attention."""
    model = build(context=context).train()
    model(*batch, mode='loss')['loss_context'].backward()
    reached = {
        name.removeprefix(f'{BLOCK}.attn.').split('.')[0]
        for name, parameter in model.named_parameters()
        if name.startswith(f'{BLOCK}.attn.') and parameter.grad is not None and parameter.grad.any()
    }
    assert reached == trains


@pytest.mark.parametrize('dense_mode', ['csa', 'qq', 'value'])
def test_every_trainable_parameter_gets_a_gradient(build, tiny_arch, batch, dense_mode):
    """Or DDP would wait for it in vain."""
    student = {'arch': tiny_arch(), 'trainable_blocks': 2, 'dense_mode': dense_mode}
    model = build(student=student).train()
    before = {name: value.clone() for name, value in model.teacher.state_dict().items()}
    losses = model(*batch, mode='loss')
    (losses['loss_content'] + losses['loss_context']).backward()
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == trainable
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert all(torch.equal(before[name], value) for name, value in model.teacher.state_dict().items())


def test_teachers_are_no_part_of_the_model(build, tiny_arch):
    model = build().train()
    assert set(model.state_dict()) == {f'vlm.{name}' for name in load_vlm(tiny_arch()).state_dict()}
    assert not any(parameter.requires_grad for parameter in model.teacher.parameters())
    assert not any(module.training for module in model.teacher.modules())


def small_vit(folder: Path) -> Path:
    path = folder / 'vit.pth'
    torch.save(timm.create_model(SMALL_VIT, num_classes=0).state_dict(), path)
    return path


def test_timm_model_with_weights_of_a_file(tmp_path):
    model = TimmFoundationModel(SMALL_VIT, str(small_vit(tmp_path))).eval()
    stored = torch.load(tmp_path / 'vit.pth', weights_only=True)
    assert torch.equal(model.model.state_dict()['cls_token'], stored['cls_token'])
    rows, cols = model.patch_size
    images = torch.randn(1, 3, 3 * rows, 5 * cols)
    found = model(images, (3, 5))
    torch.testing.assert_close(found[0].flatten(1).T, model.model.forward_features(images)[0, 1:])
    assert model(torch.randn(2, 3, 40, 40), (4, 2)).shape[-2:] == (4, 2)


def test_timm_models_that_cannot_be_had(tmp_path):
    with pytest.raises(ValueError, match="timm has no model 'vit_of_nobody'"):
        TimmFoundationModel('vit_of_nobody', None)
    with pytest.raises(FileNotFoundError, match='gone.pth does not exist'):
        TimmFoundationModel(SMALL_VIT, str(tmp_path / 'gone.pth'))
    state = torch.load(small_vit(tmp_path), weights_only=True)
    del state['norm.weight']
    torch.save(state, tmp_path / 'less.pth')
    with pytest.raises(ValueError, match=r'less.pth does not hold the weights of test_vit(.|\n)*norm.weight'):
        TimmFoundationModel(SMALL_VIT, str(tmp_path / 'less.pth'))


def test_weights_that_hold_code_are_refused(tmp_path):
    torch.save({'state_dict': {}, 'code': Path}, tmp_path / 'code.pth')
    with pytest.raises(ValueError, match='code.pth is refused'):
        TimmFoundationModel(SMALL_VIT, str(tmp_path / 'code.pth'))


def test_foundation_model_sees_its_own_pixels_at_the_students_grid(build, batch):
    images, samples = batch
    model = build(foundation={'type': 'densevlm_mm.TimmFoundationModel', 'name': SMALL_VIT, 'checkpoint': None})
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in statistics(model.student.visual))
    found = model.to_foundation((torch.full((1, 3, 1, 1), 0.75) - mean) / std)
    torch.testing.assert_close(found, torch.full_like(found, 0.5))  # a model that wants its pixels in -1..1
    assert model(images, samples, mode='loss')['loss_context'].isfinite()


def test_vlm_block_that_does_not_exist(tiny_arch):
    with pytest.raises(ValueError, match='block 2 does not exist'):
        VLMFoundationModel({'arch': tiny_arch()}, block=2)
