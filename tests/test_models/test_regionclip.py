"""RegionCLIP: what it computes, what learns, which nouns it takes."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor

from densevlm_mm.datasets import grid_boxes
from densevlm_mm.models import RegionCLIP
from densevlm_mm.models.losses.federated_bce import FederatedBCELoss
from densevlm_mm.registry import MODELS
from densevlm_mm.vlm import class_embeddings, load_vlm

NOUNS = ('car', 'tree', 'ball', 'sky', 'water')
TEMPLATES = ['a photo of a {}.']


@pytest.fixture
def build(tiny_arch) -> Callable[..., RegionCLIP]:
    def make(**changes: object) -> RegionCLIP:
        torch.manual_seed(0)
        config = {
            'type': 'densevlm_mm.RegionCLIP',
            'student': {'arch': tiny_arch(), 'trainable_blocks': 2},
            'nouns': NOUNS,
            'loss': {'type': 'densevlm_mm.FederatedBCELoss', 'num_sampled': 4},
            'templates': TEMPLATES,
        }
        return MODELS.build({**config, **changes})

    return make


@pytest.fixture
def batch() -> tuple[Tensor, list[BaseDataElement]]:
    samples = []
    for rows, cols, labels in ((1, 3, [4, 0, 0]), (1, 2, [2, 4])):
        regions = InstanceData(boxes=grid_boxes(64, 64, rows, cols) / 64, labels=torch.tensor(labels))
        samples.append(BaseDataElement(gt_regions=regions))
    return torch.randn(2, 3, 64, 64), samples


def test_loss_is_that_of_scaled_cosines(build, batch):
    images, samples = batch
    model = build(seed=3)
    features = model.student.encode_boxes(images, [sample.gt_regions.boxes for sample in samples])
    texts = F.normalize(class_embeddings(model.student, NOUNS, TEMPLATES), dim=-1)
    logits = model.student.logit_scale.exp() * F.normalize(features, dim=-1) @ texts.T
    expected = FederatedBCELoss(4)(logits, torch.tensor([4, 0, 0, 2, 4]), generator=np.random.default_rng((3, 0)))
    losses = model(images, samples, mode='loss')
    torch.testing.assert_close(losses['loss_classification'], expected, rtol=1e-5, atol=1e-6)
    assert losses['num_regions'] == 5


def test_training_lowers_the_loss_and_reaches_exactly_what_trains(build, batch):
    model = build().train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    before = model(*batch, mode='loss')['loss_classification']
    before.backward()
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == trainable
    assert trainable and all('.blocks.' in name for name in trainable)
    optimizer.step()
    assert model(*batch, mode='loss')['loss_classification'] < before


def test_checkpoint_is_one_of_the_student(build, tiny_arch):
    assert set(build().state_dict()) == {f'vlm.{name}' for name in load_vlm(tiny_arch()).state_dict()}


def test_nouns_are_the_categories_by_id(build, tmp_path):
    ids = (7, 3, 9, 20, 11)
    categories = [{'id': i, 'name': name} for i, name in zip(ids, NOUNS, strict=True)]
    (tmp_path / 'pseudo.json').write_text(json.dumps({'categories': categories}))
    model = build(nouns=str(tmp_path / 'pseudo.json'))
    assert model.nouns == ('tree', 'car', 'ball', 'water', 'sky')
    torch.testing.assert_close(model.noun_text, class_embeddings(model.student, model.nouns, TEMPLATES, normalize=True))
    (tmp_path / 'plain.json').write_text('{"images": []}')
    with pytest.raises(ValueError, match='plain.json: has no "categories"'):
        build(nouns=str(tmp_path / 'plain.json'))
    with pytest.raises(FileNotFoundError, match='gone.json'):
        build(nouns=str(tmp_path / 'gone.json'))


def test_ready_embeddings_are_normalised(build, tmp_path):
    stored = F.normalize(torch.randn(5, 16), dim=-1) * 0.95
    np.save(tmp_path / 'nouns.npy', stored.numpy())
    model = build(text_embeddings=str(tmp_path / 'nouns.npy'))
    torch.testing.assert_close(model.noun_text, F.normalize(stored, dim=-1))
    with pytest.raises(ValueError, match='nouns.npy has shape .* but the vocabulary has 2 classes'):
        build(nouns=NOUNS[:2], text_embeddings=str(tmp_path / 'nouns.npy'))


def test_labels_of_another_file(build, batch):
    with pytest.raises(ValueError, match='labels lie in 0..4, but there are 3 nouns'):
        build(nouns=NOUNS[:3])(*batch, mode='loss')
