"""Training over base classes against the masked softmax of all, in float64; and the loss within a real box head."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdet.models.losses import CrossEntropyLoss
from mmengine.config import ConfigDict
from torch import Tensor, nn

from densevlm_mm.det import ScoreFusion, VocabularyCrossEntropyLoss
from densevlm_mm.registry import MODELS
from densevlm_mm.vlm import Vocabulary

SPLIT = ('base', 'novel', 'base', None, 'base')


def make_vocabulary(split: tuple[str | None, ...] = SPLIT) -> Vocabulary:
    names = tuple(f'class {i}' for i in range(len(split)))
    return Vocabulary(names, (True,) * len(split), split=split)


def build(split: tuple[str | None, ...] = SPLIT, **options) -> VocabularyCrossEntropyLoss:
    loss = VocabularyCrossEntropyLoss(**options)
    loss.set_vocabulary(make_vocabulary(split))
    return loss


def batch(split: tuple[str | None, ...], count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits, and labels that are base classes or background."""
    random = torch.Generator().manual_seed(seed)
    allowed = torch.tensor([i for i, part in enumerate(split) if part == 'base'] + [len(split)])
    labels = allowed[torch.randint(len(allowed), (count,), generator=random)]
    return 5 * torch.randn(count, len(split) + 1, generator=random), labels


splits = st.lists(st.sampled_from(['base', 'novel', None]), min_size=0, max_size=12).map(lambda rest: ('base', *rest))


@settings(max_examples=40)
@given(split=splits, count=st.integers(1, 8), background_weight=st.floats(0.1, 2), seed=st.integers(0, 1000))
def test_is_the_masked_softmax_of_all_classes(split, count, background_weight, seed):
    """Value and gradient of a cross-entropy whose logits of other classes are -inf, and whose weights are 0."""
    logits, labels = batch(split, count, seed)
    ours, masked = logits.clone().requires_grad_(), logits.double().requires_grad_()
    found = build(split, background_weight=background_weight, loss_weight=2.0)(ours, labels, avg_factor=count)
    keep = torch.tensor([part == 'base' for part in split] + [True])
    weights = torch.tensor([float(part == 'base') for part in split] + [background_weight], dtype=torch.float64)
    each = F.cross_entropy(masked.masked_fill(~keep, -torch.inf), labels, reduction='none', weight=weights)
    expected = 2.0 * each.sum() / count
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    found.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad.double(), masked.grad, rtol=1e-4, atol=1e-6)
    assert not ours.grad[:, ~keep].any()


def test_value_is_the_plain_formula():
    logits, labels = batch(SPLIT, 6)
    weights = torch.tensor([1.0, 0.0, 0.5, 2.0, 1.0, 1.0])
    total = 0.0
    for row, label, weight in zip(logits.double(), labels.tolist(), weights.double(), strict=True):
        chance = row[label].exp() / sum(row[i].exp() for i in (0, 2, 4, 5))
        total -= weight * chance.log() * (0.6 if label == 5 else 1.0)
    found = build(background_weight=0.6)(logits, labels, weights, avg_factor=7.0)
    assert found.item() == pytest.approx(float(total) / 7, rel=1e-5)


@pytest.mark.parametrize('reduction', ['none', 'mean', 'sum'])
def test_reductions_are_mmdets(reduction):
    logits, labels = batch(SPLIT, 6)
    weights = torch.rand(6)
    stock = CrossEntropyLoss(class_weight=[1.0, 1.0, 1.0, 0.6])
    targets = torch.tensor([{0: 0, 2: 1, 4: 2, 5: 3}[label] for label in labels.tolist()])
    expected = stock(logits[:, [0, 2, 4, 5]], targets, weights, reduction_override=reduction)
    found = build(background_weight=0.6)(logits, labels, weights, reduction_override=reduction)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize('classes', [1, 4, 1203])
def test_without_a_split_all_classes_train(classes):
    logits, labels = torch.randn(5, classes + 1), torch.randint(classes + 1, (5,))
    stock = CrossEntropyLoss(class_weight=[1.0] * classes + [0.9])
    found = build((None,) * classes, background_weight=0.9)(logits, labels, avg_factor=5)
    torch.testing.assert_close(found, stock(logits, labels, avg_factor=5))


def test_lvis():
    """866 of 1203 classes train; the others could be anything."""
    split = tuple('novel' if i % 25 < 7 else 'base' for i in range(1203))
    logits, labels = batch(split, 16)
    loss = build(split)
    value = loss(logits, labels)
    novel = torch.tensor([part == 'novel' for part in split] + [False])
    assert torch.equal(loss(logits.masked_fill(novel, 1e4), labels), value)
    assert len(loss.columns) == 1204 - int(novel.sum())


def test_no_region_gives_zero():
    logits = torch.zeros(0, 6, requires_grad=True)
    value = build()(logits, torch.zeros(0, dtype=torch.long), avg_factor=1.0)
    value.backward()
    assert value == 0


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_logits_give_an_fp32_loss(dtype):
    logits, labels = batch(SPLIT, 6)
    half = (20 * logits).to(dtype)
    with torch.autocast('cpu', dtype=dtype):
        found = build(background_weight=0.6)(half, labels)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, build(background_weight=0.6)(half.float(), labels))


@pytest.mark.parametrize(('label', 'message'), [
    (1, "'class 1' .class 1., which is not a base class: train on annotations of base classes only"),
    (3, "'class 3' .class 3., which is not a base class"),
    (6, 'label 6 is none of the 5 classes'),
    (-1, 'label -1 is none of the 5 classes'),
    (-100, 'label -100 is none'),
])  # fmt: skip
@pytest.mark.parametrize('elsewhere', [False, True])
def test_labels_that_do_not_train_are_refused(label, message, elsewhere, monkeypatch):
    """Elsewhere than on the CPU nobody looks at the values, so that the operators have to."""
    logits, labels = batch(SPLIT, 4)
    labels[2] = label
    loss, error = build(), ValueError
    if elsewhere:
        monkeypatch.setattr(loss, '_check_labels', lambda labels: None)
        error, message = IndexError, 'out of (range|bounds)'
    with pytest.raises(error, match=message):
        loss(logits, labels)


def test_use_without_a_fitting_vocabulary():
    logits, labels = batch(SPLIT, 4)
    with pytest.raises(RuntimeError, match='no vocabulary yet: call set_vocabulary'):
        VocabularyCrossEntropyLoss()(logits, labels)
    with pytest.raises(ValueError, match='6 logits, but the vocabulary has 1 classes and a background'):
        build(('base',))(logits, labels)
    with pytest.raises(ValueError, match='no base classes to train'):
        build(('novel', None, None, 'novel', None))(logits, labels)
    with pytest.raises(ValueError, match='weights must not be negative, got -1'):
        VocabularyCrossEntropyLoss(background_weight=-1)


def test_accuracy_is_over_what_trains():
    logits = torch.tensor([[2.0, 9, 1, 9, 1, 0], [2, 0, 1, 0, 1, 0], [0, 5, 0, 0, 0, 1], [0, 0, 2, 0, 3, 0]])
    labels = torch.tensor([0, 2, 5, 4])
    assert build().get_accuracy(logits, labels)['acc'].item() == 75


def test_hooks_of_mmdet():
    loss = build()
    assert loss.custom_cls_channels and loss.custom_activation and loss.custom_accuracy
    assert loss.get_cls_channels(65) == 66
    scores = torch.rand(3, 6)
    torch.testing.assert_close(loss.get_activation(scores.log()), scores)


def test_tables_move_along_and_are_not_saved():
    loss = build().to('meta')
    assert loss.columns.is_meta and loss.targets.is_meta
    loss.set_vocabulary(make_vocabulary(('base', 'novel')))
    assert loss.columns.is_meta and loss.targets.is_meta
    assert not loss.state_dict()


def test_vocabulary_may_change():
    loss = build()
    loss.set_vocabulary(make_vocabulary(('novel', 'base')))
    logits, labels = batch(('novel', 'base'), 5)
    torch.testing.assert_close(loss(logits, labels), F.cross_entropy(logits[:, 1:], labels - 1))


# ---- in a box head


@pytest.fixture
def head() -> nn.Module:
    head = MODELS.build(
        dict(
            type='mmdet.ConvFCBBoxHead',
            num_shared_convs=1,
            num_shared_fcs=1,
            num_cls_fcs=1,
            num_reg_fcs=1,
            in_channels=4,
            conv_out_channels=4,
            roi_feat_size=3,
            fc_out_channels=16,
            reg_class_agnostic=True,
            cls_predictor_cfg=dict(type='densevlm_mm.TextEmbeddingClassifier'),
            loss_cls=dict(type='densevlm_mm.VocabularyCrossEntropyLoss', background_weight=0.6),
            loss_bbox=dict(type='mmdet.L1Loss'),
        )
    )
    head.init_weights()
    head.num_classes = len(SPLIT)
    head.loss_cls.set_vocabulary(make_vocabulary())
    texts = torch.randn(len(SPLIT) + 1, 16)
    head.fc_cls.set_texts(texts[:-1], texts[-1])
    return head


def sampled(positives: list[int], negatives: int) -> SimpleNamespace:
    """What an assigner and a sampler leave of an image."""
    corners = 20 * torch.rand(len(positives) + negatives, 2)
    boxes = torch.cat([corners, corners + 10], dim=1)
    found = boxes[: len(positives)]
    return SimpleNamespace(
        pos_priors=found,
        neg_priors=boxes[len(positives) :],
        pos_gt_bboxes=found + 1,
        pos_gt_labels=torch.tensor(positives),
    )


def test_box_head_trains(head):
    images = [sampled([0, 4], 3), sampled([2], 2)]
    rois = torch.zeros(8, 5)
    logits, deltas = head(torch.rand(8, 4, 3, 3))
    result = head.loss_and_target(logits, deltas, rois, images, ConfigDict(pos_weight=-1))
    losses = result['loss_bbox']
    labels = torch.tensor([0, 4, 5, 5, 5, 2, 5, 5])
    assert result['bbox_targets'][0].tolist() == labels.tolist()
    each = F.cross_entropy(logits[:, [0, 2, 4, 5]], torch.tensor([0, 2, 3, 3, 3, 1, 3, 3]), reduction='none')
    expected = (each * torch.where(labels == 5, 0.6, 1.0)).sum() / 8
    torch.testing.assert_close(losses['loss_cls'], expected)
    assert set(losses) == {'loss_cls', 'loss_bbox', 'acc'}
    (losses['loss_cls'] + losses['loss_bbox']).backward()
    # nothing is left over, so that DistributedDataParallel need not search for it
    assert all(parameter.grad is not None for parameter in head.parameters())


def test_box_head_refuses_boxes_of_novel_classes(head):
    logits, deltas = head(torch.rand(3, 4, 3, 3))
    with pytest.raises(ValueError, match="labelled 'class 1'"):
        head.loss_and_target(logits, deltas, torch.zeros(3, 5), [sampled([1], 2)], ConfigDict(pos_weight=-1))


@pytest.mark.parametrize('renormalize', [False, True])
def test_box_head_predicts_fused_scores(head, renormalize):
    """The scores of MMDetection's own post-processing are those that went in, and background is no detection."""
    fusion = ScoreFusion(0.1, 0.8, temperature=20.0, renormalize=renormalize)
    fusion.set_vocabulary(make_vocabulary())
    corners = torch.tensor([[0.0, 0], [30, 0], [0, 30]])
    rois = torch.cat([torch.zeros(3, 1), corners, corners + 20], dim=1)
    logits, deltas = head.eval()(torch.rand(3, 4, 3, 3))
    scores = fusion(logits, torch.rand(3, len(SPLIT) + 1))
    config = ConfigDict(score_thr=0.0, nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)
    metas = [dict(img_shape=(64, 64), scale_factor=(1.0, 1.0))]
    found = head.predict_by_feat((rois,), (scores,), (deltas,), metas, config)[0]
    expected = scores.exp()[:, :-1].flatten().sort(descending=True)
    torch.testing.assert_close(found.scores, expected.values)
    assert torch.equal(found.labels, expected.indices % len(SPLIT))
