"""The whole detector: training, prediction, vocabularies, checkpoints."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from mmengine.runner.checkpoint import get_state_dict, load_state_dict, weights_to_cpu
from mmengine.structures import InstanceData
from torch import nn
from torchvision.ops import roi_align

from densevlm_mm.registry import MODELS
from densevlm_mm.vlm import class_embeddings, load_vlm

OBJECTS = [(0, [4.0, 6.0, 40.0, 44.0]), (3, [20.0, 10.0, 60.0, 58.0])]
WORDS = ['a photo of a {}']


def images(count: int = 1, size: tuple[int, int] = (64, 64)) -> torch.Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(1))


def total(losses: dict) -> torch.Tensor:
    parts = [value for key, value in losses.items() if 'loss' in key]
    return sum(sum(part) if isinstance(part, list) else part for part in parts)


def predicted(detector, inputs, samples):
    with torch.no_grad():
        return [sample.pred_instances for sample in detector.predict(inputs, samples, rescale=False)]


@pytest.mark.parametrize('masks', [False, True])
def test_everything_that_trains_gets_a_gradient_and_the_tower_stays(build, samples, masks):
    detector = build(masks=masks).train()
    before = copy.deepcopy(detector.tower.state_dict())
    optimizer = torch.optim.AdamW([p for p in detector.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.1)
    for step in range(2):
        loss = total(detector.loss(images(2), samples(OBJECTS, OBJECTS[:1])))
        assert torch.isfinite(loss)
        optimizer.zero_grad()
        loss.backward()
        without = [n for n, p in detector.named_parameters() if p.requires_grad and p.grad is None]
        assert without == [], step
        optimizer.step()
    assert not any(p.requires_grad for p in detector.tower.parameters())
    assert not any(module.training for module in detector.tower.modules())
    assert all(torch.equal(value, before[name]) for name, value in detector.tower.state_dict().items())


def test_the_tower_is_frozen_and_in_eval_mode_from_its_construction_on(detector_config):
    detector = MODELS.build(detector_config())
    assert not any(p.requires_grad for p in detector.tower.parameters())
    assert not any(module.training for module in detector.tower.modules())


@pytest.mark.parametrize('masks', [False, True])
def test_a_batch_of_two_is_two_single_images(build, samples, masks):
    detector = build(masks=masks)
    nn.init.normal_(detector.rpn_head.rpn_cls.weight)  # as they are made, all proposals tie, and rounding decides
    inputs = images(2)
    together = predicted(detector, inputs, samples([], []))
    for index, expected in enumerate(together):
        (alone,) = predicted(detector, inputs[index : index + 1], samples([]))
        assert len(alone) == len(expected) > 0
        torch.testing.assert_close(alone.bboxes, expected.bboxes, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(alone.scores, expected.scores, rtol=1e-4, atol=1e-6)
        assert torch.equal(alone.labels, expected.labels)


def test_scores_are_those_of_the_formula(build, samples, clip):
    """Proposals given, everything else computed once more in plain terms."""
    detector = build()
    inputs, sample = images(), samples([])
    rois = torch.tensor([[0, 3.0, 5.0, 40.0, 50.0], [0, 10.0, 2.0, 63.0, 30.0]])
    with torch.no_grad():
        x = detector.extract_feat(inputs)
        fused = detector.roi_head._bbox_forward(x, rois)['cls_score'].exp()
        plain = detector.roi_head.bbox_head(detector.roi_head.bbox_roi_extractor(tuple(x)[:4], rois))[0]
        vlm = load_vlm(**clip).eval()
        names = class_embeddings(vlm, [*detector.vocabulary.names, 'grass', 'sky'], WORDS)
        texts = F.normalize(torch.cat([names[:-2], names[-2:].mean(0, keepdim=True)]), dim=-1)
        regions = F.normalize(roi_align(vlm.encode_dense(inputs), rois, 1, 1 / 8, aligned=True).flatten(1), dim=-1)
    p_det, p_vlm = plain.softmax(-1), (15 * regions @ texts.T).softmax(-1)
    weight = torch.tensor([0.1, 0.1, 0.8, 0.1, 0.1])  # 'star' is novel; background counts as base
    torch.testing.assert_close(fused, p_det ** (1 - weight) * p_vlm**weight, rtol=1e-4, atol=1e-7)
    assert sample[0].gt_instances.bboxes.shape == (0, 4)


def test_loss_in_eval_mode_is_the_detector_s_alone(build, samples):
    detector, inputs = build().eval(), images()

    def loss() -> torch.Tensor:
        torch.manual_seed(0)
        return detector.loss(inputs, samples([(0, [5.0, 5.0, 30.0, 30.0])]))['loss_cls']

    cool = loss()
    detector.roi_head.score_fusion.temperature = 75.0
    assert torch.equal(loss(), cool)


def test_images_that_are_not_square(build, samples):
    detector = build()
    (result,) = predicted(detector, images(size=(48, 80)), samples([], size=(48, 80)))
    assert len(result) > 0
    assert (result.bboxes[:, 2] <= 80).all()
    assert (result.bboxes[:, 3] <= 48).all()
    loss = total(detector.train().loss(images(size=(48, 80)), samples(OBJECTS[:1], size=(48, 80))))
    assert torch.isfinite(loss)


def test_images_without_objects_train(build, samples):
    detector = build(masks=True).train()
    loss = total(detector.loss(images(2), samples([], OBJECTS)))
    assert torch.isfinite(loss)
    loss = total(detector.loss(images(2), samples([], [])))
    assert torch.isfinite(loss)
    loss.backward()


def test_no_proposals_no_detections(build, samples):
    detector = build(masks=True)
    detector.rpn_head.test_cfg.min_bbox_size = 1000
    (result,) = predicted(detector, images(), samples([]))
    assert len(result) == 0
    assert result.masks.shape[0] == 0


def test_a_novel_label_does_not_train(build, samples):
    with pytest.raises(ValueError, match="'star'.*not a base class"):
        build().train().loss(images(), samples([(2, OBJECTS[0][1])]))


@pytest.mark.parametrize('count', [1, 1203])
def test_vocabularies_of_any_size(detector_config, samples, count, clip):
    names = ['car'] if count == 1 else [f'class {i}' for i in range(count)]
    embeddings = F.normalize(torch.randn(count + 1, 16), dim=-1)
    config = detector_config(vocabulary=['tree'])
    detector = MODELS.build(config)
    detector.set_vocabulary(names, embeddings)
    assert torch.isfinite(total(detector.train().loss(images(), samples([(0, OBJECTS[0][1])]))))
    (result,) = predicted(detector.eval(), images(), samples([]))
    assert len(result) > 0
    assert result.labels.max() < count


def test_another_vocabulary_at_run_time(build, samples):
    detector = build()
    expected = build(vocabulary=['cup', 'fish'])
    meta = detector.dataset_meta = {
        'classes': ('car', 'tree', 'star', 'boat'),
        'novel_classes': ('star',),
        'palette': None,
    }
    detector.set_vocabulary(['cup', 'fish'])
    assert detector.dataset_meta is meta  # which visualizers hold, too
    assert meta == {'classes': ('cup', 'fish'), 'palette': None}
    assert detector.vocabulary.names == ('cup', 'fish')
    (now,), (then,) = (predicted(model, images(), samples([])) for model in (detector, expected))
    assert torch.equal(now.scores, then.scores)
    assert torch.equal(now.labels, then.labels)


def test_embeddings_from_a_file(detector_config, samples, tmp_path):
    names = [*detector_config().vocabulary['things'], 'background']
    torch.save({'embeddings': F.normalize(torch.randn(5, 16), dim=-1), 'names': names}, tmp_path / 'texts.pt')
    detector = MODELS.build(detector_config(text_embeddings=str(tmp_path / 'texts.pt')))
    stored = torch.load(tmp_path / 'texts.pt')['embeddings']
    torch.testing.assert_close(detector.roi_head.bbox_head.fc_cls.text_columns(), stored)
    with pytest.raises(ValueError, match=r'texts\.pt'):
        detector.set_vocabulary(['car'], tmp_path / 'texts.pt')
    with pytest.raises(ValueError, match='a row per class'):
        detector.set_vocabulary(['car'], torch.ones(1, 16))


def test_a_checkpoint_alone_is_enough_to_detect(build, detector_config, samples):
    """Without the CLIP's own file, tower and class embeddings are the detector's."""
    trained = build()
    config = detector_config()
    config.backbone.checkpoint = None
    loaded = MODELS.build(config).eval()
    with pytest.raises(RuntimeError, match='embedding'):
        predicted(loaded, images(), samples([]))
    loaded.load_state_dict(trained.state_dict())
    (one,), (two,) = (predicted(model, images(), samples([])) for model in (trained, loaded))
    assert torch.equal(one.scores, two.scores)
    with pytest.raises(ValueError, match='checkpoint'):
        loaded.set_vocabulary(['cup'])
    config.vocabulary = ['cup', 'fish', 'ball', 'person']
    with pytest.raises(RuntimeError, match='another vocabulary'):
        MODELS.build(config).load_state_dict(trained.state_dict())


def checkpoints(detector: nn.Module) -> dict[str, dict]:
    """Its state as PyTorch and as mmengine collect it."""
    return {'torch': detector.state_dict(), 'mmengine': weights_to_cpu(get_state_dict(detector))}


@pytest.mark.parametrize('way', ['torch', 'mmengine'])
def test_a_checkpoint_without_the_tower_loads_beside_the_same_tower(build, samples, way):
    trained, other = build(save_tower=False), build(save_tower=False)
    nn.init.normal_(trained.rpn_head.rpn_cls.weight)
    state = checkpoints(trained)[way]
    assert not any(key.startswith('backbone.') for key in state)
    other.load_state_dict(copy.deepcopy(state))
    load_state_dict(other, copy.deepcopy(state), strict=True)
    (one,), (two,) = (predicted(model, images(), samples([])) for model in (trained, other))
    assert torch.equal(one.scores, two.scores)
    whole = build()  # a model that keeps its tower reads such a file, too
    whole.load_state_dict(copy.deepcopy(state))
    nn.init.normal_(next(whole.tower.parameters()))
    with pytest.raises(RuntimeError, match='frozen tower'):
        whole.load_state_dict(copy.deepcopy(state))


def test_another_dense_mode_is_refused(build, detector_config):
    config = detector_config()
    config.backbone.dense_mode = 'csa'
    for options in ({}, {'save_tower': False}):
        with pytest.raises(RuntimeError, match="another dense mode than 'csa'"):
            MODELS.build(config).load_state_dict(build(**options).state_dict())


def test_proposals_may_come_without_scores(build, samples):
    detector, (sample,) = build(), samples([])
    sample.proposals = InstanceData(bboxes=torch.tensor([[4.0, 6, 40, 44], [10, 10, 60, 60]]))
    (result,) = predicted(detector, images(), [sample])
    assert len(result) > 0


def test_a_detector_without_masks_reads_one_with(build, samples):
    trained, boxes = build(masks=True), build()
    boxes.load_state_dict(trained.state_dict())
    (one,), (two,) = (predicted(model, images(), samples([])) for model in (trained, boxes))
    assert torch.equal(one.scores, two.scores)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'backbone': {'trainable': 1}}, 'frozen'),
        ({'roi_head': {'bbox_head': {'type': 'Shared2FCBBoxHead'}}}, 'class_agnostic=True'),
        ({'region_pooling': 'crops'}, 'region_pooling'),
        ({'region_pooling': 'head'}, 'with_dense'),
        ({'region_pooling': 'head', 'backbone': {'with_dense': False}}, 'convolutional'),
    ],
)
def test_options_that_do_not_fit_are_refused(detector_config, change, message):
    config = detector_config()
    for key, value in change.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    with pytest.raises(ValueError, match=message):
        MODELS.build(config)
