"""Labels against the protocol done plainly, window by window and class by class; batches, vocabularies, checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmseg.apis import MMSegInferencer, inference_model, init_model
from mmseg.models import BaseSegmentor
from mmseg.structures import SegDataSample
from torch import Tensor

from densevlm_mm.registry import MODELS
from densevlm_mm.seg import TrainingFreeSegmentor, class_scores, training_free
from densevlm_mm.vlm import VLM, Vocabulary, class_embeddings, load_vlm
from densevlm_mm.vlm.checkpoints import CheckpointError

TEMPLATES = ['a photo of a {}', 'a {}']
NAMES = ['car', 'tree', 'star', 'sky', 'grass']
BACKGROUND = {
    'things': ['car', 'star'],
    'stuff': ['sky', 'background'],
    'synonyms': {'car': ['car', 'boat'], 'background': ['earth']},
    'background': 'threshold',
}
# neither the stride nor the patches of 8 px divide the window
VIEW = {'window': 30, 'stride': 13}
SHARP = 200.0  # logit scale at which the probabilities of a random model spread over 0..1


@pytest.fixture
def build(clip) -> Callable[..., TrainingFreeSegmentor]:
    def make(**options: Any) -> TrainingFreeSegmentor:
        config = {'type': 'densevlm_mm.TrainingFreeSegmentor', 'vlm': clip, 'vocabulary': NAMES}
        config |= {'templates': TEMPLATES, 'logit_scale': SHARP, **VIEW, **options}
        return MODELS.build(config).eval()

    return make


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    """Blocks of colour ``(3, H, W)``, so that features differ from place to place."""
    colours = torch.randn(1, 3, -(-height // 6), -(-width // 6), generator=torch.Generator().manual_seed(seed))
    return 2 * F.interpolate(colours, scale_factor=6)[0, :, :height, :width]


def starts(length: int, window: int, stride: int) -> list[int]:
    found = [0]
    while found[-1] + window < length:
        found.append(min(found[-1] + stride, length - window))
    return found


def plain_cosines(model: TrainingFreeSegmentor, image: Tensor, size: tuple[int, int]) -> Tensor:
    """Cosines ``(P, *size)``: every step as it is written, on whole images."""
    phrases, _ = model.vocabulary.expanded()
    texts = class_embeddings(model.vlm, phrases, TEMPLATES, normalize=True)
    (height, width), (down, across) = image.shape[-2:], model.vlm.visual.patch_size
    window, stride = model.view.window, model.view.stride
    total, count = torch.zeros(len(texts), height, width), torch.zeros(height, width)
    for y in starts(height, window, stride):
        for x in starts(width, window, stride):
            crop = image[None, :, y : y + window, x : x + window]
            h, w = crop.shape[-2:]
            whole = torch.zeros(1, 3, math.ceil(h / down) * down, math.ceil(w / across) * across)
            whole[..., :h, :w] = crop
            found = torch.einsum('bchw,pc->bphw', model.vlm.encode_dense(whole), texts)
            found = F.interpolate(found, size=whole.shape[-2:], mode='bilinear', align_corners=False)
            total[:, y : y + h, x : x + w] += found[0, :, :h, :w]
            count[y : y + h, x : x + w] += 1
    return F.interpolate((total / count)[None], size=size, mode='bilinear', align_corners=False)[0]


def plain_labels(model: TrainingFreeSegmentor, cosines: Tensor) -> Tensor:
    probabilities = (model.view.logit_scale * cosines).softmax(0)
    classes = torch.tensor(model.vocabulary.expanded()[1])
    scores = torch.stack([probabilities[classes == i].amax(0) for i in range(len(model.vocabulary))])
    best, labels = scores.max(0)
    if model.rule.threshold:
        labels[best < model.rule.threshold] = model.vocabulary.names.index('background')
    return labels


def predicted(model: TrainingFreeSegmentor, image: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    samples = None if size is None else [SegDataSample(metainfo={'ori_shape': size})]
    (sample,) = model(image[None], samples, mode='predict')
    return sample.pred_sem_seg.data[0]


def check(model: TrainingFreeSegmentor, image: Tensor, size: tuple[int, int]) -> None:
    """Labels are those of the plain way wherever rounding does not decide; there are several of them."""
    labels, expected = predicted(model, image, size), plain_labels(model, plain_cosines(model, image, size))
    assert labels.shape == size
    assert labels.dtype == torch.long
    assert (labels == expected).float().mean() > 0.995
    assert len(labels.unique()) > 2


# ---------------------------------------------------------------- the protocol


@pytest.mark.parametrize(('image_size', 'size'), [
    ((48, 64), (48, 64)),
    ((48, 64), (75, 101)),
    ((61, 43), (40, 33)),
    ((20, 64), (30, 100)),  # lower than a window
    ((13, 21), (13, 21)),  # smaller than a window
])  # fmt: skip
def test_labels_are_those_of_the_protocol(build, image_size, size):
    check(build(), picture(*image_size), size)


def test_cosines_are_those_of_the_protocol(build):
    model, images = build(vocabulary=BACKGROUND, threshold=0.1), torch.stack([picture(48, 61), picture(48, 61, seed=1)])
    found = model.encode_decode(images)
    assert found.shape == (2, 5, 48, 61)
    for image, cosines in zip(images, found, strict=True):
        torch.testing.assert_close(cosines, plain_cosines(model, image, (48, 61)), rtol=0, atol=1e-5)


def test_synonyms_and_background_by_threshold(build):
    model, image = build(vocabulary=BACKGROUND, threshold=0.35), picture(48, 64)
    check(model, image, (48, 64))
    found = [(predicted(model, image) == 3).sum().item()]
    for threshold in (0.0001, 0.99999):
        model.set_vocabulary(BACKGROUND, threshold=threshold)
        found.append((predicted(model, image) == 3).sum().item())
    assert found[1] < found[0] < found[2] <= 48 * 64


def test_background_by_words(build):
    words = {**BACKGROUND, 'background': ['grass', 'tree', 'wood']}
    model = build(vocabulary=words)
    assert model.vocabulary.expanded()[0] == ('car', 'boat', 'star', 'sky', 'grass', 'tree', 'wood')
    check(model, picture(48, 64), (48, 64))


@pytest.mark.parametrize('mode', ['value', 'vanilla', 'csa'])
def test_any_dense_mode(build, clip, mode):
    model = build(vlm={**clip, 'dense_mode': mode})
    assert model.vlm.dense_mode == mode
    check(model, picture(48, 64), (48, 64))


@pytest.mark.parametrize('vision', [
    {'image_size': 32, 'patch_size': 8, 'layers': 2, 'width': 32, 'head_width': 16},
    {'image_size': 64, 'layers': [1, 1, 1, 1], 'width': 8},  # cells of 32 px, more than a window has
], ids=['ViT', 'ResNet'])  # fmt: skip
def test_any_tower(build, clip, vision):
    model = build(vlm={'arch': {**clip['arch'], 'vision_cfg': vision}})
    image = picture(48, 64)
    expected = plain_cosines(model, image, (48, 64))
    torch.testing.assert_close(model.encode_decode(image[None])[0], expected, rtol=0, atol=1e-5)
    labels = predicted(model, image)
    assert (labels == plain_labels(model, expected)).float().mean() > 0.995


def test_a_constant_map_is_constant_in_the_image(build, monkeypatch):
    model = build()
    direction = torch.randn(model.vlm.embed_dim)
    monkeypatch.setattr(
        model.vlm.visual,
        'encode_dense',
        lambda images, mode: direction[:, None, None].expand(len(images), -1, images.shape[-2] // 8, 4),
    )
    found = model.encode_decode(picture(45, 61)[None])[0]
    expected = F.normalize(direction, dim=0) @ model.query_texts().T
    torch.testing.assert_close(found, expected[:, None, None].expand_as(found), rtol=0, atol=1e-6)
    assert predicted(model, picture(45, 61), (30, 90)).unique().tolist() == [expected.argmax().item()]


def test_half_precision_changes_few_labels(build, clip):
    image = picture(48, 64)
    whole, half = (predicted(build(vlm={**clip, 'dtype': dtype}), image) for dtype in (None, 'bfloat16'))
    assert (whole == half).float().mean() > 0.9


def test_chunks_of_windows_and_tiles_change_nothing(build, monkeypatch):
    model, image = build(), picture(48, 64)
    before = predicted(model, image, (75, 101))
    monkeypatch.setattr(training_free, '_WINDOWS_AT_ONCE', 1)
    monkeypatch.setattr(class_scores, '_SCORES_AT_ONCE', 1)
    assert (predicted(model, image, (75, 101)) == before).float().mean() > 0.999


def test_847_classes_and_847_labels(build, monkeypatch):
    """More classes than the tiny CLIP has words: their texts are given."""
    names = tuple(f'class {i}' for i in range(847))
    model, texts = build(vocabulary=names, logit_scale=40.0), F.normalize(torch.randn(847, 16), dim=-1)
    monkeypatch.setattr(training_free, 'class_embeddings', lambda *args, **kwargs: texts)
    labels = predicted(model, picture(48, 64))
    assert labels.max() > 255
    best = model.encode_decode(picture(48, 64)[None])[0].argmax(0)
    assert (labels == best).float().mean() > 0.995


# ---------------------------------------------------------------- batches and mmseg's contract


def loaded(*sizes: tuple[int, int]) -> dict[str, list]:
    """Images as MMSegmentation's pipelines pack them, BGR bytes, and what is known of them."""
    pixels = [(60 * picture(*size, seed=seed) + 128).clamp(0, 255).byte() for seed, size in enumerate(sizes)]
    samples = [SegDataSample(metainfo={'ori_shape': (h + 5, w - 3), 'img_shape': (h, w)}) for h, w in sizes]
    return {'inputs': pixels, 'data_samples': samples}


def test_a_batch_of_two_sizes_is_two_singles(build):
    model, sizes = build(vocabulary=BACKGROUND, threshold=0.3), [(48, 64), (61, 40)]
    together = model.test_step(loaded(*sizes))
    for index, (height, width) in enumerate(sizes):
        batch = loaded(*sizes)
        (alone,) = model.test_step({key: values[index : index + 1] for key, values in batch.items()})
        labels = together[index].pred_sem_seg.data
        assert labels.shape == (1, height + 5, width - 3)
        assert (labels == alone.pred_sem_seg.data).float().mean() > 0.999
        assert len(labels.unique()) > 2
        assert together[index].vocabulary == ('car', 'star', 'sky', 'background')


def test_images_are_normalised_for_the_tower(build):
    model, batch = build(), loaded((48, 64))
    mean, std = (torch.tensor(values)[:, None, None] for values in (model.vlm.visual.mean, model.vlm.visual.std))
    rgb = batch['inputs'][0].flip(0).float() / 255
    found = model.data_preprocessor(batch)['inputs'][0]
    torch.testing.assert_close(found, (rgb - mean) / std, rtol=1e-4, atol=1e-4)


def test_an_own_preprocessor_stays(build, clip):
    model = build(data_preprocessor={'type': 'SegDataPreProcessor', 'mean': [0.0] * 3, 'std': [1.0] * 3})
    before = model.data_preprocessor
    model.load_weights(clip['checkpoint'])
    assert model.data_preprocessor is before


def test_is_a_segmentor_without_training(build):
    model, images = build(), picture(48, 64)[None]
    assert isinstance(model, BaseSegmentor)
    torch.testing.assert_close(model(images), model.vlm.encode_dense(images))
    with pytest.raises(NotImplementedError, match='TrainingFreeSegmentor is for evaluation'):
        model(images, [SegDataSample()], mode='loss')
    # DistributedDataParallel refuses a model in which nothing trains
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == ['vlm.logit_scale']


# ---------------------------------------------------------------- vocabularies at run time


def test_another_vocabulary_is_another_model(build):
    model, image = build(), picture(48, 64)
    first = predicted(model, image)
    model.set_vocabulary(BACKGROUND, threshold=0.3, window=48, stride=24, logit_scale=50.0)
    other = build(vocabulary=BACKGROUND, threshold=0.3, window=48, stride=24, logit_scale=50.0)
    assert torch.equal(predicted(model, image), predicted(other, image))
    model.set_vocabulary(NAMES)  # nothing of the other one stays
    assert torch.equal(predicted(model, image), first)
    assert model.dataset_meta['classes'] == tuple(NAMES)


def test_a_permuted_vocabulary_permutes_the_labels(build):
    model, image, order = build(), picture(48, 64), [3, 0, 4, 1, 2]
    labels = predicted(model, image)
    model.set_vocabulary([NAMES[i] for i in order])
    assert torch.equal(torch.tensor(order)[predicted(model, image)], labels)


def test_any_vocabulary_object(build):
    model = build(vocabulary=Vocabulary(('car', 'sky'), (True, False)))
    assert set(predicted(model, picture(48, 64)).unique().tolist()) <= {0, 1}
    model.set_vocabulary(['car'])
    assert not predicted(model, picture(48, 64)).any()


def test_a_refused_vocabulary_changes_nothing(build):
    model, image = build(), picture(48, 64)
    before = predicted(model, image)
    for options, message in [
        ({'vocabulary': ['car', 'sky'], 'threshold': 0.3}, "threshold=0.3 .* none named 'background'"),
        ({'vocabulary': BACKGROUND}, 'set the threshold'),
        ({'vocabulary': ['car', 'car']}, 'occur twice'),
        ({'vocabulary': ['car', 'sky'], 'templates': 'unknown'}, 'unknown'),
        ({'vocabulary': ['car', 'sky'], 'window': 30, 'stride': 31}, 'windows of 30 px every 31 px'),
        ({'vocabulary': ['car', 'sky'], 'logit_scale': 0.0}, 'logit_scale must be positive'),
    ]:
        with pytest.raises(ValueError, match=message):
            model.set_vocabulary(**options)
        with pytest.raises(ValueError, match=message):
            build(**options)
    assert torch.equal(predicted(model, image), before)
    assert model.vocabulary.names == tuple(NAMES)


def test_texts_are_made_once_per_vocabulary(build, monkeypatch):
    calls = []

    def count(vlm: VLM, names: tuple[str, ...], *args: Any, **kwargs: Any) -> Tensor:
        calls.append(names)
        return class_embeddings(vlm, names, *args, **kwargs)

    monkeypatch.setattr(training_free, 'class_embeddings', count)
    model, image = build(), picture(48, 64)
    assert not calls  # the weights may be yet to come
    predicted(model, image), predicted(model, image)
    model.set_vocabulary(['car', 'sky'])
    predicted(model, image)
    assert calls == [tuple(NAMES), ('car', 'sky')]


# ---------------------------------------------------------------- checkpoints


def test_a_checkpoint_may_come_later(build, clip, tmp_path):
    torch.manual_seed(1)
    other = load_vlm(clip['arch'])
    torch.save(other.state_dict(), tmp_path / 'other.pt')
    image = picture(48, 64)
    model, expected = build(), build(vlm={'arch': clip['arch'], 'checkpoint': str(tmp_path / 'other.pt')})
    before = predicted(model, image)
    model.load_weights(tmp_path / 'other.pt')
    assert torch.equal(predicted(model, image), predicted(expected, image))
    assert not torch.equal(predicted(model, image), before)


def test_the_dense_mode_and_the_pixels_of_a_checkpoint_are_adopted(build, clip, tmp_path):
    content = torch.load(clip['checkpoint'], weights_only=True)
    meta = {'dense_mode': 'csa', 'mean': [0.5] * 3, 'std': [0.25] * 3}
    torch.save({**content, 'meta': {'vlm': meta}}, tmp_path / 'csa.pth')
    model = build()
    model.load_weights(tmp_path / 'csa.pth')
    assert model.vlm.dense_mode == 'csa'
    assert model.data_preprocessor.mean.flatten().tolist() == [127.5] * 3
    named = build(vlm={**clip, 'dense_mode': 'qq'})
    with pytest.warns(UserWarning, match='was trained in dense mode .csa.'):
        named.load_weights(tmp_path / 'csa.pth')
    assert named.vlm.dense_mode == 'qq'


def test_a_checkpoint_of_another_size_is_refused(build, tiny_arch, tmp_path):
    torch.save(load_vlm(tiny_arch(width=48)).state_dict(), tmp_path / 'wide.pt')
    model, image = build(), picture(48, 64)
    before = predicted(model, image)
    with pytest.raises(CheckpointError, match='wide.pt does not fit this architecture'):
        model.load_weights(tmp_path / 'wide.pt')
    assert torch.equal(predicted(model, image), before)


@pytest.mark.parametrize('strict', [True, False])
def test_texts_follow_the_weights_in_mmengines_loops(build, clip, strict):
    model, image = build(), picture(48, 64)
    before = predicted(model, image)
    torch.manual_seed(1)
    state = load_vlm(clip['arch']).state_dict(prefix='vlm.')
    model.load_state_dict(state if strict else {key: state[key] for key in state if '.text.' in key}, strict=strict)
    labels = predicted(model, image)
    assert not torch.equal(labels, before)
    assert (labels == plain_labels(model, plain_cosines(model, image, (48, 64)))).float().mean() > 0.995


@pytest.mark.parametrize('change', [lambda model: model.to('cpu'), lambda model: model.double().float()])
def test_texts_follow_the_device(build, change):
    """There is but one device here: that they are made anew has to do."""
    model = build()
    before = model.query_texts()
    assert model.query_texts() is before
    change(model)
    assert model.query_texts() is not before


# ---------------------------------------------------------------- mmseg's own tools


@pytest.fixture
def config(clip) -> Config:
    """As for tools/test.py, of the tiny CLIP."""
    path = Path(__file__).parents[2] / 'configs' / 'training_free' / '_base_' / 'training-free_vitb16.py'
    config = Config.fromfile(path)
    config.model.update(vlm=clip, vocabulary=NAMES, templates=TEMPLATES, **VIEW)
    config.test_pipeline[1].scale = config.test_dataloader.dataset.pipeline[1].scale = (64, 48)
    return config


def test_with_mmsegs_functions(config):
    model = init_model(config, device='cpu')
    sample = inference_model(model, np.zeros((96, 128, 3), np.uint8))
    assert sample.pred_sem_seg.data.shape == (1, 96, 128)
    assert sample.vocabulary == tuple(NAMES)


@pytest.mark.filterwarnings('ignore')  # it warns of classes that it means to take from elsewhere
def test_with_mmsegs_inferencer(config):
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    inferencer = MMSegInferencer(config, device='cpu')
    found = inferencer(image, return_vis=True)
    assert inferencer.model.dataset_meta['classes'] == tuple(NAMES)
    assert found['predictions'].shape == (48, 64) and found['visualization'].shape == (48, 64, 3)


@pytest.mark.parametrize('option', ['pretrained', 'train_cfg', 'test_cfg'])
def test_mmsegs_other_arguments_are_refused(build, option):
    with pytest.raises(ValueError, match=f'{option} would have no effect'):
        build(**{option: {'mode': 'slide'}})
