"""Logits against plain cosines in float64, what a box head's init_weights leaves, and what a checkpoint may change."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.runner.checkpoint import load_state_dict
from torch import Tensor

from densevlm_mm.det import TextEmbeddingClassifier
from densevlm_mm.registry import MODELS

WIDTH, CLASSES = 16, 5
BACKGROUNDS = ('text', 'learned', 'zero')


def rows(count: int, width: int = WIDTH, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def build(classes: int = CLASSES, seed: int = 0, **options) -> TextEmbeddingClassifier:
    """A classifier with texts, made for another number of classes, as in a box head."""
    classifier = TextEmbeddingClassifier(**{'in_features': WIDTH, 'out_features': 81, **options})
    texts = rows(classes + 1, classifier.text_width, seed)
    classifier.set_texts(texts[:-1], texts[-1])
    return classifier


def plain_logits(features: Tensor, columns: Tensor, temperature: float) -> Tensor:
    """One product at a time."""
    logits = torch.zeros(len(features), len(columns), dtype=torch.float64)
    for i, feature in enumerate(features.double()):
        for j, column in enumerate(columns.double()):
            length = (feature @ feature).sqrt() * (column @ column).sqrt()
            logits[i, j] = temperature * (feature @ column) / length
    return logits


@pytest.mark.parametrize('classes', [1, 5, 1203])
def test_logits_are_temperature_times_cosine(classes):
    classifier, features = build(classes, temperature=40.0), rows(3, seed=1)
    logits = classifier(features)
    assert logits.shape == (3, classes + 1)
    assert classifier.out_features == classes + 1
    expected = plain_logits(features, rows(classes + 1), 40.0)
    torch.testing.assert_close(logits.double(), expected, rtol=1e-5, atol=1e-4)


@settings(max_examples=30)
@given(seed=st.integers(0, 1000), length=st.floats(1e-3, 1e3), text_length=st.floats(1e-3, 1e3))
def test_lengths_do_not_matter(seed, length, text_length):
    features, texts = rows(3, seed=seed), rows(CLASSES + 1, seed=seed + 1)
    short, long = build(), build()
    short.set_texts(texts[:-1], texts[-1])
    long.set_texts(text_length * texts[:-1], text_length * texts[-1])
    logits = short(features)
    torch.testing.assert_close(long(length * features), logits, rtol=1e-4, atol=1e-3)
    assert logits.abs().max() <= 50.0 * (1 + 1e-5)


@pytest.mark.parametrize('background', BACKGROUNDS)
def test_background(background):
    classifier, features = build(background=background), rows(3, seed=1)
    expected = plain_logits(features, rows(CLASSES + 1), 50.0)
    if background == 'zero':
        expected[:, -1] = 0
    torch.testing.assert_close(classifier(features).double(), expected, rtol=1e-5, atol=1e-4)
    # what a VLM compares with is the word all the same
    torch.testing.assert_close(classifier.text_columns(), torch.nn.functional.normalize(rows(CLASSES + 1), dim=-1))


def test_learned_background_trains_as_a_direction():
    classifier, features = build(background='learned'), rows(3, seed=1)
    own = rows(1, seed=2)[0]
    with torch.no_grad():
        classifier.learned_background.copy_(1000 * own)
    logits = classifier(features)
    expected = plain_logits(features, torch.cat([rows(CLASSES + 1)[:-1], own[None]]), 50.0)
    torch.testing.assert_close(logits.double(), expected, rtol=1e-5, atol=1e-4)
    logits[:, -1].sum().backward()
    assert classifier.learned_background.grad.any()


def test_learned_background_stays_when_the_vocabulary_changes():
    classifier = build(background='learned')
    with torch.no_grad():
        classifier.learned_background.add_(1.0)
    before = classifier.learned_background.clone()
    texts = rows(3, seed=5)
    classifier.set_texts(texts[:-1], texts[-1])
    assert torch.equal(classifier.learned_background, before)
    assert classifier(rows(2)).shape == (2, 3)


@pytest.mark.parametrize('project', [False, True])
def test_what_trains(project):
    options = {'project': True, 'embed_dim': 12} if project else {}
    fixed, learned = build(learn_temperature=False, **options), build(background='learned', **options)
    linear = {'projection.weight', 'projection.bias'} if project else set()
    assert {name for name, _ in fixed.named_parameters()} == linear
    assert {name for name, _ in learned.named_parameters()} == {'temperature', 'learned_background'} | linear
    learned(rows(4, seed=1))[:, 1:].square().sum().backward()
    assert all(parameter.grad.any() for parameter in learned.parameters())


def test_projection_is_a_plain_linear_layer():
    classifier, features = build(project=True, embed_dim=12), rows(3, seed=1)
    projected = features @ classifier.projection.weight.T + classifier.projection.bias
    expected = plain_logits(projected.detach(), rows(CLASSES + 1, 12), 50.0)
    torch.testing.assert_close(classifier(features).double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('background', BACKGROUNDS)
@pytest.mark.parametrize('project', [False, True])
def test_feature_of_zeros_has_no_direction(background, project):
    """A row of zeros is what a ReLU may leave; with a new projection, whose bias is 0, it stays one."""
    classifier = build(background=background, **({'project': True, 'embed_dim': 12} if project else {}))
    if project:
        torch.nn.init.zeros_(classifier.projection.bias)
    features = rows(3, seed=1)
    features[1] = 0
    features.requires_grad_()
    logits = classifier(features)
    assert not logits[1].any()
    logits.sum().backward()
    assert not features.grad[1].any() and features.grad[[0, 2]].any(dim=1).all()
    gradients = [parameter.grad for parameter in classifier.parameters()]
    assert all(gradient.isfinite().all() and gradient.abs().max() < 1e4 for gradient in gradients)


def test_text_of_zeros_gives_no_nan():
    classifier = build()
    classifier.set_texts(torch.zeros(2, WIDTH), rows(1)[0])
    logits = classifier(rows(3))
    assert not logits[:, :2].any() and logits.isfinite().all()


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_cosines_are_fp32_under_autocast(dtype):
    """Two texts that half precision cannot tell apart."""
    texts = rows(1).repeat(2, 1)
    texts[1] += 1e-3 * rows(1, seed=3)[0]
    classifier, features = build(), rows(3, seed=1)
    classifier.set_texts(texts, rows(1, seed=4)[0])
    expected = classifier(features)
    with torch.autocast('cpu', dtype=dtype):
        logits = classifier(features)
        half = classifier(features.to(dtype))
    assert logits.dtype == half.dtype == torch.float32
    assert torch.equal(logits, expected)
    torch.testing.assert_close(half, expected, rtol=0, atol=0.5)
    assert (half[:, 0] != half[:, 1]).all()


def test_projection_under_autocast():
    classifier, features = build(project=True, embed_dim=12), rows(3, seed=1)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        logits = classifier(features)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, classifier(features), rtol=0, atol=0.5)


def test_use_before_there_are_texts():
    classifier = TextEmbeddingClassifier(WIDTH, CLASSES + 1)
    for use in (classifier.text_columns, lambda: classifier(rows(1))):
        with pytest.raises(RuntimeError, match='no texts yet: .*set_vocabulary.*or load a checkpoint'):
            use()


@pytest.mark.parametrize(('texts', 'background', 'message'), [
    (rows(3, 12), rows(1, 12)[0], 'texts are 12 wide, .* 16: set fc_out_channels=12 in the box head, or project=True'),
    (rows(3), rows(1), r'texts must be \(K, C\) and the background \(C,\), got \(3, 16\) and \(1, 16\)'),
    (rows(3)[0], rows(1)[0], r'got \(16,\) and \(16,\)'),
    (rows(0), rows(1)[0], r'got \(0, 16\)'),
    (rows(3) / 0, rows(1)[0], 'not finite'),
])  # fmt: skip
def test_texts_that_do_not_fit(texts, background, message):
    with pytest.raises(ValueError, match=message):
        build().set_texts(texts, background)


def test_texts_that_do_not_fit_the_projection():
    with pytest.raises(ValueError, match='texts are 16 wide, .* 12: set embed_dim=16 in its cls_predictor_cfg'):
        build(project=True, embed_dim=12).set_texts(rows(3), rows(1)[0])


@pytest.mark.parametrize(('options', 'message'), [
    ({'background': 'word'}, "background must be 'text', 'learned' or 'zero', got 'word'"),
    ({'temperature': 0}, 'temperature must be positive, got 0'),
    ({'project': True}, 'project=True and embed_dim'),
    ({'embed_dim': 12}, 'project=True and embed_dim'),
])  # fmt: skip
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        TextEmbeddingClassifier(WIDTH, 4, **options)


def test_texts_are_copied_and_get_no_gradient():
    classifier, texts = build(), rows(3).requires_grad_()
    classifier.set_texts(texts[:-1], texts[-1])
    assert not classifier.texts.requires_grad
    before = classifier.texts.clone()
    with torch.no_grad():
        texts.zero_()
    assert torch.equal(classifier.texts, before)


# ---- in a box head


def make_head(**options) -> torch.nn.Module:
    return MODELS.build(
        dict(
            type='mmdet.ConvFCBBoxHead',
            num_shared_fcs=1,
            num_cls_fcs=1,
            num_reg_fcs=1,
            in_channels=4,
            roi_feat_size=2,
            fc_out_channels=WIDTH,
            reg_class_agnostic=True,
            cls_predictor_cfg=dict(type='densevlm_mm.TextEmbeddingClassifier', **options),
        )
    )


@pytest.mark.parametrize('background', BACKGROUNDS)
@pytest.mark.parametrize('project', [False, True])
def test_init_weights_of_a_box_head_leaves_the_texts_alone(background, project):
    """MMDetection's heads fill every ``weight`` and ``bias`` within ``fc_cls`` with noise."""
    head = make_head(background=background, **({'project': True, 'embed_dim': 12} if project else {}))
    classifier = head.fc_cls
    texts = rows(CLASSES + 1, classifier.text_width)
    classifier.set_texts(texts[:-1], texts[-1])
    before = copy.deepcopy(classifier.state_dict())
    head.init_weights()
    after = classifier.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == ({'projection.weight', 'projection.bias'} if project else set())
    assert project == (len([name for name in before if name.endswith(('weight', 'bias'))]) > 0)


def test_the_number_of_classes_is_that_of_the_texts():
    head = make_head()
    texts = rows(CLASSES + 1)
    head.fc_cls.set_texts(texts[:-1], texts[-1])
    scores, boxes = head(torch.rand(3, 4, 2, 2))
    assert scores.shape == (3, CLASSES + 1)
    assert boxes.shape == (3, 4)


# ---- in checkpoints


@pytest.mark.parametrize('loader', ['torch', 'mmengine'])
@pytest.mark.parametrize('background', BACKGROUNDS)
def test_without_own_texts_the_checkpoints_are_taken(background, loader):
    source = build(7, seed=3, background=background, temperature=30.0)
    if background == 'learned':
        torch.nn.init.normal_(source.learned_background)
    fresh = TextEmbeddingClassifier(WIDTH, 81, background=background)
    if loader == 'torch':
        fresh.load_state_dict(source.state_dict())
    else:
        load_state_dict(fresh, source.state_dict(), strict=True)
    assert torch.equal(fresh(rows(3, seed=1)), source(rows(3, seed=1)))
    assert fresh.out_features == 8
    assert fresh.texts.data_ptr() != source.texts.data_ptr()
    # they were the file's, so another file's may follow
    fresh.load_state_dict(build(2, background=background).state_dict())
    assert fresh(rows(3)).shape == (3, 3)


@pytest.mark.parametrize('loader', ['torch', 'mmengine'])
@pytest.mark.parametrize('count', [1, CLASSES, 7])
def test_own_texts_win(count, loader):
    own, source = build(), build(count, seed=3, temperature=30.0, background='text')
    texts, state = own.texts.clone(), source.state_dict()
    if loader == 'torch':
        own.load_state_dict(state)
    else:
        load_state_dict(own, state, strict=True)
    assert torch.equal(own.texts, texts)
    assert own.temperature == 30.0
    assert len(state['texts']) == count  # the caller's is not touched


def test_learned_background_of_a_checkpoint_survives_another_vocabulary():
    source = build(background='learned')
    torch.nn.init.normal_(source.learned_background)
    own = build(3, seed=5, background='learned')
    own.load_state_dict(source.state_dict())
    texts = rows(5, seed=6)
    own.set_texts(texts[:-1], texts[-1])
    assert torch.equal(own.learned_background, source.learned_background)


def test_checkpoint_without_texts_is_enough_beside_own_ones():
    state = {'temperature': torch.tensor(30.0)}
    own = build()
    own.load_state_dict(state)
    assert own.temperature == 30.0 and len(own.texts) == CLASSES
    fresh = TextEmbeddingClassifier(WIDTH, 81)
    fresh.load_state_dict(state)
    with pytest.raises(RuntimeError, match='no texts yet'):
        fresh(rows(1))


@pytest.mark.parametrize('change', [
    {'texts': rows(3, 12), 'background_text': rows(1, 12)[0]},
    {'texts': rows(3)[0]},
    {'background_text': rows(1, 12)[0]},
    {'texts': rows(3) / 0},
])  # fmt: skip
def test_texts_of_a_checkpoint_are_checked(change):
    state = {**build().state_dict(), **change}
    fresh = TextEmbeddingClassifier(WIDTH, 81)
    with pytest.raises(RuntimeError, match='texts: texts (are|must be|hold)'):
        fresh.load_state_dict(state)
    assert fresh.texts is None
    build().load_state_dict(state)  # not asked for, not looked at


def test_a_fixed_temperature_is_the_configs():
    learned, fixed = build(temperature=30.0), build(temperature=60.0, learn_temperature=False)
    fixed.load_state_dict(learned.state_dict())
    assert fixed.temperature == 60.0
    learned.load_state_dict(fixed.state_dict())
    assert learned.temperature == 60.0


def test_a_part_of_a_model_is_loaded_by_its_prefix():
    source, fresh = torch.nn.ModuleDict({'head': build(7)}), torch.nn.ModuleDict()
    fresh['head'] = TextEmbeddingClassifier(WIDTH, 81)
    fresh.load_state_dict(source.state_dict())
    assert torch.equal(fresh['head'].texts, source['head'].texts)
    with pytest.raises(RuntimeError, match='Unexpected key.*head.textures'):
        fresh.load_state_dict({**source.state_dict(), 'head.textures': rows(1)})


def test_copies_keep_their_texts():
    duplicate = copy.deepcopy(build())
    duplicate.load_state_dict(build(7, seed=3).state_dict())
    assert len(duplicate.texts) == CLASSES


def test_printed():
    assert "text_width=12, temperature=50 (learned), background='text'" in repr(build(project=True, embed_dim=12))
