"""Contrastive pre-training: both losses by their formula, what they reach, and batches that lack a kind of region."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor

from densevlm_mm.datasets import grid_boxes
from densevlm_mm.models import CLIPPretrainer
from densevlm_mm.registry import MODELS

NAMES = ['car', 'tree', 'sky', 'water']
PROMPTS = [f'a photo of a {name}.' for name in NAMES]
CAPTIONS = ['a photo of a car on sand', 'a photo of a tree', 'a photo of a ball and a star']


@pytest.fixture
def build(tiny_arch) -> Callable[..., CLIPPretrainer]:
    def make(**options: object) -> CLIPPretrainer:
        vocabulary = {'things': NAMES[:2], 'stuff': NAMES[2:]}
        config = {'type': 'densevlm_mm.CLIPPretrainer', 'vlm': {'arch': tiny_arch()}, 'eval_vocabulary': vocabulary}
        return MODELS.build({**config, **options}).train()

    return make


def make_batch(labels: tuple[int, ...] = (0, 1, 2, 3)) -> tuple[Tensor, list[BaseDataElement]]:
    """Three images with captions; four regions in the first, two in the second, none in the third."""
    generator = torch.Generator().manual_seed(0)
    samples = []
    for caption, count in zip(CAPTIONS, (4, 2, 0), strict=True):
        kinds = torch.tensor(labels[:count], dtype=torch.int64)
        regions = InstanceData(
            boxes=grid_boxes(32, 32, 2, 2)[: len(kinds)] / 32,
            masks=(torch.rand(len(kinds), 4, 4, generator=generator) > 0.3).float(),
            labels=kinds,
            is_thing=kinds < 2,
        )
        samples.append(BaseDataElement(gt_regions=regions, caption=caption))
    return torch.randn(3, 3, 32, 32), samples


def test_caption_loss_is_symmetric_cross_entropy(build):
    model = build()
    images, samples = make_batch()
    losses = model(images, samples, mode='loss')
    assert set(losses) == {'loss_caption'}
    texts = model.vlm.encode_text(model.vlm.tokenize(CAPTIONS))
    logits = model.vlm.logit_scale.exp() * model.vlm.encode_image(images) @ texts.T
    expected = (F.cross_entropy(logits, torch.arange(3)) + F.cross_entropy(logits.T, torch.arange(3))) / 2
    torch.testing.assert_close(losses['loss_caption'], expected)


def test_region_loss_is_that_of_zero_shot_classification(build):
    """Boxes of things and masks of all, as the evaluation compares them."""
    model = build(caption_weight=0.0, region_weight=0.5)
    images, samples = make_batch()
    losses = model(images, samples, mode='loss')
    assert set(losses) == {'loss_region'}
    texts = model.vlm.encode_text(model.vlm.tokenize(PROMPTS)) * model.vlm.logit_scale.exp()
    regions = [sample.gt_regions for sample in samples]
    boxed = model.vlm.encode_boxes(images, [r.boxes[r.is_thing] for r in regions])
    masked = model.vlm.encode_masks(images, [r.masks for r in regions])
    labels = torch.cat([r.labels for r in regions])
    expected = F.cross_entropy(F.normalize(boxed, dim=-1) @ texts.T, labels[labels < 2])
    expected = 0.5 * (expected + F.cross_entropy(masked @ texts.T, labels))
    torch.testing.assert_close(losses['loss_region'], expected)


@pytest.mark.parametrize('labels', [(2, 3, 2, 3), ()])
def test_batches_without_things_or_regions(build, labels):
    model = build(region_weight=1.0)
    losses = model(*make_batch(labels), mode='loss')
    sum(losses.values()).backward()
    assert losses['loss_region'].isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert (losses['loss_region'] > 0) == bool(labels)


def test_every_weight_trains(build):
    model = build(caption_weight=0.3, region_weight=1.0)
    sum(model(*make_batch(), mode='loss').values()).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_few_steps_lower_the_loss(build):
    model, batch = build(region_weight=1.0), make_batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    history = []
    for _ in range(8):
        loss = sum(model(*batch, mode='loss').values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.8 * history[0]


def test_class_embeddings_of_a_text_tower_in_training_are_not_kept_on_disk(build, tmp_path, monkeypatch):
    monkeypatch.setenv('DENSEVLM_CACHE', str(tmp_path))
    model = build(eval_templates=['a photo of a {}.']).eval()
    before = model.eval_text()
    assert model.eval_text() is before
    model.train()
    with torch.no_grad():
        model.vlm.text.text_projection += torch.randn(32, 16)
    assert not torch.allclose(model.eval().eval_text(), before)
    assert not list(tmp_path.iterdir())


def test_checkpoint_loads_as_a_model_of_its_own(build, tiny_arch, tmp_path):
    from densevlm_mm.vlm import load_vlm

    model = build().eval()
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'iter_1.pth')
    images = torch.randn(1, 3, 32, 32)
    vlm = load_vlm(tiny_arch(), tmp_path / 'iter_1.pth')
    torch.testing.assert_close(vlm.encode_image(images), model.vlm.encode_image(images))
