"""The whole segmentor: training, prediction, vocabularies, checkpoints."""

from __future__ import annotations

import copy
from itertools import islice, product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.runner.checkpoint import load_state_dict
from mmseg.apis import inference_model, init_model
from mmseg.structures import SegDataSample

from densevlm_mm.datasets.miniworld import miniworld_words
from densevlm_mm.registry import MODELS
from densevlm_mm.seg import CATSeg, average_windows, sliding_windows
from densevlm_mm.seg.cat_seg import cat_seg
from densevlm_mm.seg.cat_seg.cat_seg import queries_of
from densevlm_mm.seg.cat_seg.image_features import image_features
from densevlm_mm.vlm import build_vocabulary, load_vlm

from .conftest import OPTIONS


def images(count: int = 1, size: tuple[int, int] = (40, 56)) -> torch.Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(1))


def phrases(count: int) -> list[str]:
    """Names made of words that the tiny CLIP knows."""
    return [' '.join(words) for words in islice(product(sorted(miniworld_words()), repeat=2), count)]


def labels(*size: int, classes: int = 3) -> torch.Tensor:
    return torch.randint(classes, size, generator=torch.Generator().manual_seed(2))


def loss(model: CATSeg, samples: list[SegDataSample], inputs: torch.Tensor | None = None) -> torch.Tensor:
    inputs = images(len(samples), (32, 32)) if inputs is None else inputs
    return model.train().loss(inputs, samples)['loss_seg']


def test_training_learns(build, samples):
    model = build().train()
    half = torch.zeros(32, 32, dtype=torch.long)
    half[:, 16:] = 1
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(15):
        value = loss(model, samples(half), 2 * half.expand(1, 3, -1, -1) - 1.0)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < 0.7 * losses[0]


def test_contracts_of_mmseg(build, samples):
    model, inputs = build(), images(2, (32, 32))
    assert set(model.train()(inputs, samples(labels(32, 32), labels(32, 32)), mode='loss')) == {'loss_seg'}
    model.eval()
    with torch.no_grad():
        assert model(inputs).shape == (2, 3, 16, 16)
        assert model.encode_decode(inputs).shape == (2, 3, 32, 32)
        dense, guidance = model.extract_feat(inputs)
        predicted = model(inputs, mode='predict')
    assert dense.shape == (2, 16, 4, 4)
    assert [maps.shape for maps in guidance] == [(2, 20, 8, 8), (2, 12, 16, 16)]
    torch.testing.assert_close(dense.norm(dim=1), torch.ones(2, 4, 4))
    assert [sample.pred_sem_seg.data.shape for sample in predicted] == [(1, 32, 32)] * 2
    assert predicted[0].vocabulary == model.vocabulary.names


def test_a_batch_of_two_is_two_single_images(build, samples):
    model, inputs = build(), images(2)
    sizes = [np.zeros((30, 70)), np.zeros((64, 20))]
    together = model.predict(inputs, samples(*sizes))
    for i, size in enumerate(sizes):
        (alone,) = model.predict(inputs[i : i + 1], samples(size))
        assert together[i].pred_sem_seg.data.shape == (1, *size.shape)
        assert torch.equal(alone.pred_sem_seg.data, together[i].pred_sem_seg.data)


def test_prediction_is_that_of_the_formula(build):
    """Squash, windows, global view and means once more in plain terms."""
    model, image = build(), images()
    with torch.no_grad():
        squashed = F.interpolate(image, (48, 48), mode='bilinear')
        windows = sliding_windows((48, 48), 32, 16)
        parts = [model.encode_decode(squashed[..., y1:y2, x1:x2]).sigmoid()[0] for y1, x1, y2, x2 in windows]
        whole = model.encode_decode(F.interpolate(squashed, (32, 32), mode='bilinear')).sigmoid()
        whole = F.interpolate(whole, (48, 48), mode='bilinear')[0]
        expected = (average_windows(parts, windows, (48, 48)) + whole) / 2
        torch.testing.assert_close(model.probabilities(image[0]), expected, rtol=1e-4, atol=1e-6)
        expected = F.interpolate(expected[None], (40, 56), mode='bilinear')[0].argmax(0)
    assert len(windows) == 4
    found = model.predict(image)[0].pred_sem_seg.data[0]
    assert (found == expected).float().mean() > 0.995  # ties are a matter of rounding


@pytest.mark.parametrize('size', [(40, 56), (20, 20), (16, 90)])
@pytest.mark.parametrize('options', [{}, {'squash_size': None}, {'window': None}, {'squash_size': (24, 60)}])
def test_a_constant_predictor_stays_constant(build, size, options):
    """A probability may not depend on how many views saw a pixel."""
    model = build(**options)
    model.aggregator.forward = lambda dense, texts, guidance: dense.new_full((len(dense), 3, 8, 8), 0.3)
    found = model.probabilities(images(size=size)[0])
    torch.testing.assert_close(found, torch.full_like(found, 0.3).sigmoid())
    squashed = options.get('squash_size', (48, 48)) or size
    assert found.shape == (3, *squashed)


@pytest.mark.parametrize('clip_size', [(24, 56), 40, (8, 16)])
def test_views_of_any_size_and_shape(build, samples, clip_size):
    """Also where the attention windows, of 4 cells, do not divide them."""
    model = build(clip_size=clip_size, squash_size=(40, 64))
    (sample,) = model.predict(images())
    assert sample.pred_sem_seg.data.shape == (1, 40, 56)
    assert torch.isfinite(loss(model, samples(labels(32, 32))))


def test_how_many_views_at_once_makes_no_difference(build):
    one, two = (build(views_at_once=count).probabilities(images()[0]) for count in (1, 5))
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_maps_of_all_queries_never_exist_at_once(build, largest_tensor, monkeypatch):
    model, image = build(vocabulary=phrases(40)), images()[0]
    maps = torch.randn(5, 40, 16, 16)
    monkeypatch.setattr(model, '_forward', lambda views: maps[: len(views)])
    expected = model.probabilities(image)
    monkeypatch.setattr(cat_seg, '_QUERIES_AT_ONCE', 3)
    with largest_tensor as largest:
        found = model.segment(image, (48, 48))
    assert largest.numel == maps.numel() < expected.numel()
    torch.testing.assert_close(model.probabilities(image), expected)
    assert torch.equal(found, expected.argmax(0))


def test_the_first_of_equals(build, monkeypatch):
    """Also where the others come later, or nothing is probable at all."""
    monkeypatch.setattr(cat_seg, '_QUERIES_AT_ONCE', 2)
    model = build(vocabulary=phrases(5))
    for logits, expected in (([0, 1, 0, 1, 1], 1), ([-200] * 5, 0)):
        maps = torch.tensor(logits).float().view(1, 5, 1, 1).expand(5, 5, 16, 16)
        monkeypatch.setattr(model, '_forward', lambda views, maps=maps: maps)
        assert model.segment(images()[0], (40, 56)).unique().tolist() == [expected]


def test_padding_is_cut_off(build):
    model, image = build(), images()
    padded = F.pad(image, (0, 8, 0, 16))
    sample = SegDataSample(metainfo={'ori_shape': (40, 56), 'img_padding_size': (0, 8, 0, 16)})
    (expected,), (found,) = model.predict(image), model.predict(padded, [sample])
    assert torch.equal(found.pred_sem_seg.data, expected.pred_sem_seg.data)


def test_more_classes_than_a_byte_holds(build, samples):
    names = phrases(300)
    aggregator = {**OPTIONS['aggregator'], 'pad_len': 0}
    model = build(vocabulary=names, ignore_index=65535, aggregator=aggregator, clip_size=16, window=None)
    values = labels(32, 32, classes=300)
    values[0, 0], values[1] = 299, 65535
    expected = loss(model, samples(values))
    values[0, 0] = 298
    assert loss(model, samples(values)) != expected
    (sample,) = model.eval().predict(images())
    assert sample.pred_sem_seg.data.max() < 300
    clashing = build(vocabulary=names)
    with pytest.raises(ValueError, match='ignore_index 255 is also'):
        loss(clashing, samples(values))


@pytest.mark.parametrize('count', [1, 5, 6, 7, 40])
def test_vocabularies_of_any_size(build, samples, count):
    model = build(vocabulary=phrases(count))
    assert torch.isfinite(loss(model, samples(labels(32, 32, classes=count))))
    (sample,) = model.eval().predict(images())
    assert sample.pred_sem_seg.data.max() < count


def test_labels_of_other_classes_are_refused(build, samples):
    model, values = build(), labels(32, 32)
    values[0, 0] = 3
    with pytest.raises(ValueError, match='label 3, but the vocabulary has classes 0..2'):
        loss(model, samples(values))
    values[0, 0] = 255
    assert torch.isfinite(loss(model, samples(values)))


def test_ignored_pixels(build, samples):
    values = labels(32, 32)
    values[:16] = 255
    negative, skip = (loss(build(ignored=ignored), samples(values)) for ignored in ('negative', 'skip'))
    assert skip < negative
    with pytest.raises(ValueError, match="'negative' or 'skip'"):
        build(ignored='drop')


def test_text_is_made_in_every_training_step_and_once_in_evaluation(build, samples, monkeypatch):
    model, calls = build(), []
    encode = model.vlm.encode_text
    monkeypatch.setattr(model.vlm, 'encode_text', lambda *a, **k: calls.append(1) or encode(*a, **k))
    for _ in range(2):
        model.loss(images(1, (32, 32)), samples(labels(32, 32)))
    assert len(calls) == 1
    model.train()
    for _ in range(2):
        model.loss(images(1, (32, 32)), samples(labels(32, 32)))
    assert len(calls) == 3
    frozen = build(finetune_text='none').train()
    assert not frozen.query_texts().requires_grad
    assert frozen.query_texts() is frozen.query_texts()


def test_cached_text_follows_the_weights(build):
    model, other = build(), build(vlm={'arch': build().vlm.config})
    before = model.query_texts()
    torch.nn.init.normal_(other.vlm.text.text_projection)
    model.load_state_dict(other.state_dict())
    assert torch.equal(model.query_texts(), other.query_texts())
    assert not torch.equal(model.query_texts(), before)
    assert not {'texts', 'tokens'} & set(model.state_dict())
    assert model.double().query_texts().dtype == torch.float64


def test_text_is_encoded_in_chunks(build, monkeypatch):
    model = build(vocabulary=phrases(7)).train()
    expected = model.query_texts()
    monkeypatch.setattr(cat_seg, '_PROMPTS_AT_ONCE', 3)
    found = model.query_texts()
    torch.testing.assert_close(found, expected)
    assert found.requires_grad


def test_another_vocabulary_at_run_time(build):
    model, expected = build(), build(vocabulary=['boat', 'grass', 'sky', 'cup'])
    model.predict(images())
    model.set_vocabulary(['boat', 'grass', 'sky', 'cup'])
    assert model.dataset_meta['classes'] == ('boat', 'grass', 'sky', 'cup')
    assert len(model.dataset_meta['palette']) == 4
    (now,), (then,) = (m.predict(images()) for m in (model, expected))
    assert torch.equal(now.pred_sem_seg.data, then.pred_sem_seg.data)


def test_queries():
    vocabulary = build_vocabulary({'things': ['car', 'cup'], 'synonyms': {'car': ['auto', 'vehicle']}})
    assert queries_of(vocabulary) == (('auto', 'cup'), (0, 1))
    assert queries_of(build_vocabulary(['person, individual', 'car'])) == (('person', 'car'), (0, 1))
    classes = {'things': ['car'], 'stuff': ['background'], 'background': ['sky', 'grass']}
    assert queries_of(build_vocabulary(classes)) == (('car', 'sky', 'grass'), (0, 1, 1))
    with pytest.raises(ValueError, match='threshold'):
        queries_of(build_vocabulary({**classes, 'background': 'threshold'}))


def test_words_of_the_background_are_one_class(build, samples):
    classes = {'things': ['car'], 'stuff': ['background'], 'background': ['sky', 'grass']}
    model, single = build(vocabulary=classes), build(vocabulary=['car', 'sky', 'grass'])
    (found,), (queries,) = (m.predict(images()) for m in (model, single))
    assert torch.equal(found.pred_sem_seg.data, queries.pred_sem_seg.data.clamp(max=1))
    with pytest.raises(ValueError, match='one query in training'):
        loss(model, samples(labels(32, 32, classes=2)))


def test_several_templates_are_channels_of_the_cost(build):
    model = build(templates=['a photo of a {}', '{}'])
    assert model.query_texts().shape == (3, 2, 16)
    assert model.aggregator.embedding.in_channels == 2
    assert model.predict(images())[0].pred_sem_seg.data.shape == (1, 40, 56)


def test_class_token_residual_of_openai(build, openai_clip):
    """The last block written out: values of LN(x), added to the class token; then the MLP with its own residual."""
    tower, inputs = load_vlm(**openai_clip).visual, images(2, (32, 24))
    state = tower.run(inputs, depth=2).state
    block, width = tower.blocks[-1], tower.width
    normed = F.layer_norm(state, (width,), block.ln_1.weight, block.ln_1.bias)
    value = normed @ block.attn.in_proj_weight[2 * width :].T + block.attn.in_proj_bias[2 * width :]
    tokens = block.attn.out_proj(value) + state[:, 0][:, None]
    tokens = tokens + block.mlp(block.ln_2(tokens))
    expected = tower.project(tokens[:, 1:]).transpose(1, 2).unflatten(2, (4, 3))
    dense, maps = image_features(tower, inputs, 'value', [0, 1], class_token_residual=True)
    torch.testing.assert_close(dense, expected)
    assert not torch.allclose(dense, tower.encode_dense(inputs), atol=1e-2)
    for index in (0, 1):
        torch.testing.assert_close(maps[index], tower.run(inputs, indices=[index]).maps[0])
    model = build(vlm=openai_clip, class_token_residual=True, normalize_dense=False)
    torch.testing.assert_close(model.extract_feat(images(1, (32, 32)))[0].shape, torch.Size((1, 16, 4, 4)))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'class_token_residual': True}, "OpenAI's CLIP"),
        ({'openai': {'dense_mode': 'sclip'}, 'class_token_residual': True}, "mode 'value'"),
        ({'openai': {}, 'class_token_residual': True, 'guidance_blocks': (0, 2)}, 'before the last'),
        ({'guidance_blocks': (0, 5)}, 'block 5'),
        ({'guidance_blocks': (0,)}, 'not as many'),
        ({'stride': 40}, 'stride'),
        ({'openai': {'dtype': 'bfloat16'}}, "dtype='bfloat16'.*fp32"),
        ({'pretrained': 'clip.pt'}, 'pretrained would have no effect'),
        ({'train_cfg': {'by_epoch': True}, 'test_cfg': {'mode': 'slide'}}, 'train_cfg, test_cfg would'),
    ],
)
def test_options_that_do_not_fit_are_refused(build, openai_clip, options, message):
    options = dict(options)
    if 'openai' in options:
        options['vlm'] = {**openai_clip, **options.pop('openai')}
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_towers_without_tokens_are_refused(build, tiny_arch):
    arch = {**tiny_arch(), 'vision_cfg': {'image_size': 32, 'layers': [1, 1, 1, 1], 'width': 8}}
    with pytest.raises(ValueError, match='take a ViT'):
        build(vlm={'arch': arch})


def test_checkpoints(build):
    trained, other = build(), build(vlm={'arch': build().vlm.config})
    load_state_dict(other, copy.deepcopy(trained.state_dict()), strict=True)
    (one,), (two,) = (m.predict(images()) for m in (trained, other))
    assert torch.equal(one.pred_sem_seg.data, two.pred_sem_seg.data)


def test_its_own_preprocessor(build, clip):
    model = build()
    raw = [torch.randint(256, (3, 40, 56)).byte(), torch.randint(256, (3, 30, 60)).byte()]
    data = {'inputs': raw, 'data_samples': [SegDataSample(metainfo={'ori_shape': r.shape[1:]}) for r in raw]}
    found = model.test_step(data)
    assert [sample.pred_sem_seg.data.shape for sample in found] == [(1, 40, 56), (1, 30, 60)]
    tower = model.vlm.visual
    mean, std = (torch.tensor(values)[:, None, None] for values in (tower.mean, tower.std))
    expected = model.predict((raw[1].flip(0)[None] / 255 - mean) / std)[0].pred_sem_seg.data
    assert (found[1].pred_sem_seg.data == expected).float().mean() > 0.99
    assert isinstance(MODELS.build({**OPTIONS, 'vlm': clip}), CATSeg)


def test_images_are_normalised_as_the_weights_were_trained(build):
    meta = {'mean': [0.5] * 3, 'std': [0.25] * 3}
    model = build(ignore_index=99)
    model.adopt_normalization({})
    model.adopt_normalization({'mean': [0.5] * 3})
    assert model.vlm.visual.mean == build().vlm.visual.mean
    model.adopt_normalization(meta)
    assert model.vlm.visual.mean == (0.5,) * 3 and model.vlm.visual.std == (0.25,) * 3
    preprocessor = model.data_preprocessor
    assert preprocessor.mean.flatten().tolist() == [127.5] * 3
    assert preprocessor.std.flatten().tolist() == [63.75] * 3
    assert (preprocessor.size_divisor, preprocessor.seg_pad_val) == (1, 99)


def test_a_preprocessor_of_the_config_stays(build):
    given = {'type': 'SegDataPreProcessor', 'mean': [1.0] * 3, 'std': [2.0] * 3, 'size_divisor': 1, 'seg_pad_val': 255}
    model = build(data_preprocessor=given)
    model.adopt_normalization({'mean': [0.5] * 3, 'std': [0.25] * 3})
    assert model.data_preprocessor.mean.flatten().tolist() == [1.0] * 3
    assert model.data_preprocessor.std.flatten().tolist() == [2.0] * 3


def test_training_batches_are_padded(build, samples):
    model = build().train()
    parts = samples(labels(32, 32), labels(24, 40))
    data = {'inputs': [torch.zeros(3, 32, 32), torch.zeros(3, 24, 40)], 'data_samples': parts}
    batch = model.data_preprocessor(data, training=True)
    assert batch['inputs'].shape == (2, 3, 32, 40)
    assert batch['data_samples'][0].gt_sem_seg.data[0, 0, -1] == model.ignore_index
    assert torch.isfinite(model.loss(**batch)['loss_seg'])


def test_padding_that_would_train_as_a_class_is_refused(build):
    preprocessor = {'type': 'SegDataPreProcessor', 'size_divisor': 1}
    build(data_preprocessor=preprocessor)
    build(data_preprocessor={**preprocessor, 'seg_pad_val': 65535}, ignore_index=65535)
    with pytest.raises(ValueError, match='set data_preprocessor.seg_pad_val=65535'):
        build(data_preprocessor=preprocessor, ignore_index=65535)


def test_with_mmsegs_inference(build, clip, tmp_path):
    """A checkpoint's classes are those that it was trained on, not those that are asked for."""
    meta = {'dataset_meta': {'classes': ('sky',), 'palette': [[0, 0, 0]]}}
    torch.save({'meta': meta, 'state_dict': build().state_dict()}, tmp_path / 'catseg.pth')
    config = Config({'model': {**OPTIONS, 'vlm': {'arch': clip['arch']}}})
    config.test_pipeline = [{'type': 'LoadImageFromFile'}, {'type': 'PackSegInputs'}]
    model = init_model(config, str(tmp_path / 'catseg.pth'), device='cpu')
    assert model.dataset_meta['classes'] == ('car', 'tree', 'star')
    assert torch.equal(model.query_texts(), build().query_texts())
    sample = inference_model(model, np.zeros((40, 56, 3), np.uint8))
    assert sample.pred_sem_seg.data.shape == (1, 40, 56)
    assert sample.vocabulary == ('car', 'tree', 'star')
