"""Zero-shot region classification: the numbers of the two-tower model, in batches; text embeddings kept and remade."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from mmengine.evaluator import Evaluator
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor

from densevlm_mm.evaluation import RegionAccuracy
from densevlm_mm.models import RegionClassifier, RegionModel, region_classifier
from densevlm_mm.registry import MODELS
from densevlm_mm.vlm import class_embeddings, load_vlm
from densevlm_mm.vlm.towers import CLIP_MEAN, CLIP_STD

NAMES = ['car', 'tree', 'ball', 'sky']
TEMPLATES = ['a photo of a {}.']


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory, tiny_arch) -> str:
    path = tmp_path_factory.mktemp('checkpoints') / 'model.pt'
    torch.save(load_vlm(tiny_arch()).state_dict(), path)
    return str(path)


@pytest.fixture
def build(tiny_arch, checkpoint) -> Callable[..., RegionClassifier]:
    def make(**changes: object) -> RegionClassifier:
        config = {'vlm': {'arch': tiny_arch(), 'checkpoint': checkpoint}, 'eval_vocabulary': NAMES}
        config |= {'type': 'densevlm_mm.RegionClassifier', 'eval_templates': TEMPLATES, **changes}
        return MODELS.build(config).eval()

    return make


def make_sample(count: int, seed: int = 0) -> BaseDataElement:
    """Random boxes, and masks on a grid of 6 x 8 of which the last is empty."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, 2, generator=generator).sort(1).values
    masks = (torch.rand(count, 6, 8, generator=generator) > 0.5).float()
    if count:
        masks[-1] = 0
    labels = torch.arange(count) % len(NAMES)
    regions = InstanceData(boxes=corners.flatten(1), masks=masks, labels=labels, is_thing=labels < 3)
    return BaseDataElement(gt_regions=regions, metainfo={'img_path': f'{seed}.jpg'})


def predicted(model: RegionClassifier, images: Tensor, samples: list[BaseDataElement]) -> list[tuple[Tensor, Tensor]]:
    samples = model(images, samples, mode='predict')
    return [(sample.pred_regions.box_logits, sample.pred_regions.mask_logits) for sample in samples]


def test_logits_are_cosines_of_the_models_region_features(build, tiny_arch, checkpoint):
    images, counts = torch.randn(3, 3, 48, 64), (4, 0, 2)
    samples = [make_sample(count, seed) for seed, count in enumerate(counts)]
    vlm = load_vlm(tiny_arch(), checkpoint)
    texts = class_embeddings(vlm, NAMES, TEMPLATES, normalize=True)
    results = predicted(build(), images, samples)
    for image, sample, (boxed, masked) in zip(images, samples, results, strict=True):
        boxes = vlm.encode_boxes(image[None], [sample.gt_regions.boxes])
        masks = vlm.encode_masks(image[None], [sample.gt_regions.masks])
        torch.testing.assert_close(boxed, F.normalize(boxes, dim=-1) @ texts.T, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(masked, masks @ texts.T, rtol=1e-4, atol=1e-5)
    assert results[0][0].abs().max() > 0.01
    assert not results[0][1][-1].any()  # an empty mask has no feature


@pytest.mark.parametrize(('dtype', 'tolerance'), [('bfloat16', 0.02), ('float16', 0.002)])
def test_half_precision_moves_cosines_by_little(build, tiny_arch, checkpoint, dtype, tolerance):
    images = torch.randn(2, 3, 48, 64)
    whole = predicted(build(), images, [make_sample(6, seed) for seed in range(2)])
    vlm = {'arch': tiny_arch(), 'checkpoint': checkpoint, 'dtype': dtype}
    half = predicted(build(vlm=vlm), images, [make_sample(6, seed) for seed in range(2)])
    for expected, found in zip(whole, half, strict=True):
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.dtype == torch.float32
            torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


def test_batches_do_not_change_predictions(build):
    model, images, counts = build(), torch.randn(2, 3, 48, 64), (5, 2)
    together = predicted(model, images, [make_sample(count, seed) for seed, count in enumerate(counts)])
    for index, (count, (boxed, masked)) in enumerate(zip(counts, together, strict=True)):
        alone = predicted(model, images[index : index + 1], [make_sample(count, index)])[0]
        torch.testing.assert_close(boxed, alone[0], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(masked, alone[1], rtol=1e-4, atol=1e-6)


def test_images_without_regions(build):
    results = predicted(build(), torch.randn(2, 3, 48, 64), [make_sample(0), make_sample(0)])
    assert [logits.shape for pair in results for logits in pair] == [(0, 4)] * 4


def test_masks_of_another_grid_are_refused(build):
    with pytest.raises(ValueError, match=r'\(6, 8\) grid but the dense features on a \(8, 8\) grid'):
        predicted(build(), torch.randn(1, 3, 64, 64), [make_sample(2)])


@pytest.fixture
def embedded(monkeypatch) -> list[int]:
    """Grows by one whenever a model makes its class embeddings."""
    calls = []
    original = region_classifier.class_embeddings

    def count(*args, **kwargs) -> Tensor:
        calls.append(len(calls))
        return original(*args, **kwargs)

    monkeypatch.setattr(region_classifier, 'class_embeddings', count)
    return calls


def test_class_embeddings_are_made_once(build, embedded):
    model = build()
    assert not embedded
    for _ in range(3):
        predicted(model, torch.randn(1, 3, 48, 64), [make_sample(1)])
    assert len(embedded) == 1


def test_class_embeddings_are_remade_after_training(build, embedded):
    model = build()
    before = model.eval_text()
    model.train()
    with torch.no_grad():
        model.vlm.text.text_projection += torch.randn(32, 16)
    model.eval()
    after = model.eval_text()
    assert len(embedded) == 2
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after.norm(dim=-1), torch.ones(4))


def test_class_embeddings_are_remade_after_loading(build, tiny_arch, tmp_path):
    model = build()
    before = model.eval_text()
    other = load_vlm(tiny_arch())
    with torch.no_grad():
        other.text.text_projection += torch.randn(32, 16)
    torch.save({'state_dict': other.state_dict()}, tmp_path / 'other.pt')
    model.load_weights(tmp_path / 'other.pt')
    assert not torch.allclose(before, model.eval_text())
    torch.testing.assert_close(model.eval_text(), class_embeddings(other, NAMES, TEMPLATES, normalize=True))


def test_weights_of_another_architecture_leave_the_model_as_it_was(build, tiny_arch, tmp_path):
    model = build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.save(load_vlm(tiny_arch(width=48)).state_dict(), tmp_path / 'wide.pt')
    with pytest.raises(
        ValueError, match='wide.pt does not fit this architecture(.|\n)*k_proj.weight: .48, 48. in the file'
    ):
        model.load_weights(tmp_path / 'wide.pt')
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_is_for_evaluation_only(build):
    with pytest.raises(NotImplementedError, match='RegionClassifier is for evaluation'):
        build()(torch.randn(1, 3, 48, 64), [make_sample(1)], mode='loss')


def test_no_gradient_is_kept(build):
    model = build()
    boxed, _ = predicted(model, torch.randn(1, 3, 48, 64), [make_sample(1)])[0]
    assert not boxed.requires_grad
    # DistributedDataParallel refuses a model in which nothing trains
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == ['vlm.logit_scale']


def test_model_without_vocabulary(tiny_arch):
    model = RegionModel(load_vlm(tiny_arch()))
    with pytest.raises(RuntimeError, match='set model.eval_vocabulary'):
        predicted(model, torch.randn(1, 3, 48, 64), [make_sample(1)])
    assert model(torch.randn(1, 3, 48, 64)).shape == (1, 16, 6, 8)


def test_normalisation_happens_in_the_preprocessor(build):
    options = {'type': 'ImgDataPreprocessor', 'mean': [10.0, 20.0, 30.0], 'std': [2.0, 4.0, 5.0]}
    model = build(data_preprocessor=options)
    images = torch.randint(0, 256, (2, 3, 48, 64), dtype=torch.uint8)
    batch = {'inputs': list(images), 'data_samples': [make_sample(2), make_sample(3)]}
    samples = model.test_step(batch)
    normalised = (images - torch.tensor(options['mean'])[:, None, None]) / torch.tensor(options['std'])[:, None, None]
    expected = predicted(model, normalised, [make_sample(2), make_sample(3)])
    for sample, (boxed, masked) in zip(samples, expected, strict=True):
        torch.testing.assert_close(sample.pred_regions.box_logits, boxed)
        torch.testing.assert_close(sample.pred_regions.mask_logits, masked)


def test_preprocessor_is_that_of_the_tower(tiny_arch):
    """Not CLIP's numbers, but whatever the model's own tower was trained with."""
    vlm = load_vlm(tiny_arch())
    vlm.visual.mean, vlm.visual.std = (0.5, 0.25, 0.2), (0.5, 0.1, 0.2)
    model = RegionModel(vlm, eval_vocabulary=NAMES, eval_templates=TEMPLATES).eval()
    images = torch.randint(0, 256, (2, 3, 48, 64), dtype=torch.uint8)
    prepared = model.data_preprocessor({'inputs': list(images)})['inputs']
    expected = (images / 255 - torch.tensor(vlm.visual.mean)[:, None, None]) / torch.tensor(vlm.visual.std)[
        :, None, None
    ]
    torch.testing.assert_close(prepared, expected)
    samples = model.test_step({'inputs': list(images), 'data_samples': [make_sample(2), make_sample(3)]})
    again = predicted(model, expected, [make_sample(2), make_sample(3)])
    for sample, (boxed, _) in zip(samples, again, strict=True):
        torch.testing.assert_close(sample.pred_regions.box_logits, boxed)


def test_own_preprocessor_is_clips(build):
    preprocessor = build().data_preprocessor
    torch.testing.assert_close(preprocessor.mean.flatten(), 255 * torch.tensor(CLIP_MEAN))
    torch.testing.assert_close(preprocessor.std.flatten(), 255 * torch.tensor(CLIP_STD))


def with_crops(sample: BaseDataElement, size: int = 32) -> BaseDataElement:
    count = len(sample.gt_regions.boxes)
    sample.gt_regions.crops = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)
    return sample


def test_crops_are_classified_as_whole_images(build, tiny_arch, checkpoint, monkeypatch):
    """Every crop alone through `encode_image`, with the arithmetic written out; in chunks of two by the model."""
    monkeypatch.setattr(region_classifier, '_CROPS_AT_ONCE', 2)
    samples = [with_crops(make_sample(count, seed)) for seed, count in enumerate((3, 0, 2))]
    model = build()
    model(torch.randn(3, 3, 48, 64), samples, mode='predict')
    vlm = load_vlm(tiny_arch(), checkpoint)
    texts = class_embeddings(vlm, NAMES, TEMPLATES, normalize=True)
    mean, std = (255 * torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    for sample in samples:
        logits = sample.pred_regions.crop_logits
        assert logits.shape == (len(sample.gt_regions), 4)
        for crop, found in zip(sample.gt_regions.crops, logits, strict=True):
            embedding = F.normalize(vlm.visual.encode_image((crop - mean)[None] / std), dim=-1)[0]
            torch.testing.assert_close(found, texts @ embedding, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(samples[0].pred_regions.crop_logits, samples[0].pred_regions.box_logits, atol=1e-3)


def test_crops_are_optional_and_follow_an_explicit_preprocessor(build):
    model = build(data_preprocessor={'type': 'ImgDataPreprocessor', 'mean': [0.0] * 3, 'std': [255.0] * 3})
    plain, cropped = make_sample(2), with_crops(make_sample(2))
    model(torch.randn(1, 3, 48, 64), [plain], mode='predict')
    assert 'crop_logits' not in plain.pred_regions
    model(torch.randn(1, 3, 48, 64), [cropped], mode='predict')
    embeddings = model.vlm.encode_image(cropped.gt_regions.crops / 255)
    torch.testing.assert_close(cropped.pred_regions.crop_logits, embeddings @ model.eval_text().T, rtol=1e-4, atol=1e-5)


def test_crops_of_images_without_regions(build):
    sample = with_crops(make_sample(0))
    build()(torch.randn(1, 3, 48, 64), [sample], mode='predict')
    assert sample.pred_regions.crop_logits.shape == (0, 4)


@pytest.mark.parametrize(('part', 'error'), [({'vlm': {'arhc': {}}}, 'arhc'), ({'eval_vocab': NAMES}, 'eval_vocab')])
def test_mistyped_keys_are_named(build, part, error):
    with pytest.raises(TypeError, match=error):
        build(**part)


def evaluate(model: RegionClassifier, classes: list[str]) -> dict[str, float]:
    evaluator = Evaluator(RegionAccuracy())
    evaluator.dataset_meta = {'classes': classes, 'is_thing': [True, True, True, False]}
    evaluator.process(model(torch.randn(1, 3, 48, 64), [make_sample(4)], mode='predict'))
    return evaluator.evaluate(1)


def test_data_set_may_name_the_classes_with_synonyms(build):
    assert 'boxes.thing.macc1' in evaluate(build(), ['car, auto', 'Tree', ' ball ', 'SKY, heaven'])


@pytest.mark.parametrize(
    ('classes', 'message'),
    [
        (
            ['car', 'ball', 'tree', 'sky'],
            "class 1 is 'tree' in the vocabulary of the model, but 'ball' in the data set",
        ),
        (['car', 'tree', 'ball, toy', 'water, sea'], "class 3 is 'sky' .* but 'water, sea'"),
    ],
)
def test_data_set_with_other_classes_is_refused(build, classes, message):
    with pytest.raises(ValueError, match=message):
        evaluate(build(), classes)


def test_data_set_with_more_classes_is_refused(build):
    with pytest.raises(ValueError, match='scores 4 classes, the data set has 5'):
        evaluate(build(), [*NAMES, 'water'])
