from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from densevlm_mm.vlm import VLM, build_vocabulary, class_embeddings, load_vlm

PATCH = {'eva': 16, 'openai': 8}


def boxes(*counts: int) -> list[Tensor]:
    """Random boxes inside the image, some numbers of them per image."""
    corners = [torch.rand(count, 2, 2).sort(1).values for count in counts]
    return [corner.flatten(1) for corner in corners]


def masks(grid: tuple[int, int], *counts: int) -> list[Tensor]:
    return [(torch.rand(count, *grid) > 0.4).float() for count in counts]


def similarity(a: Tensor, b: Tensor, dim: int = -1) -> float:
    return F.cosine_similarity(a.float(), b.float(), dim=dim).min().item()


# --- images -----------------------------------------------------------------------------------------------------------


def test_features_are_normalised_unless_told_otherwise(vlm):
    images, tokens = torch.randn(2, 3, 64, 80), torch.randint(1, 600, (3, 16))
    for encode, data in ((vlm.encode_image, images), (vlm.encode_dense, images), (vlm.encode_text, tokens)):
        unit, plain = encode(data), encode(data, normalize=False)
        assert unit.shape[1] == vlm.embed_dim == 48
        torch.testing.assert_close(unit.norm(dim=1), torch.ones(unit.norm(dim=1).shape))
        torch.testing.assert_close(unit, F.normalize(plain, dim=1))
        assert (plain.norm(dim=1) - 1).abs().max() > 0.01


@settings(max_examples=25)
@given(st.integers(0, 1), st.integers(16, 70), st.integers(16, 70))
def test_what_does_not_fill_a_patch_is_never_seen(tiny_pair, which, height, width):
    family, vlm = tiny_pair[which]
    patch = PATCH[family]
    rows, columns = height // patch, width // patch
    images = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    dense = vlm.encode_dense(images)
    assert dense.shape == (1, 48, rows, columns)
    cropped = images[..., : rows * patch, : columns * patch]
    assert torch.equal(dense, vlm.encode_dense(cropped))
    assert torch.equal(vlm.encode_image(images), vlm.encode_image(cropped))


@pytest.fixture(scope='module')
def tiny_pair(tiny_vlm) -> list[tuple[str, VLM]]:
    return [(family, tiny_vlm(family).requires_grad_(False)) for family in ('eva', 'openai')]


def test_a_batch_is_its_images_one_by_one(vlm):
    images = torch.randn(2, 3, 48, 80)
    for encode in (vlm.encode_image, vlm.encode_dense):
        singles = torch.cat([encode(image[None]) for image in images])
        torch.testing.assert_close(encode(images), singles, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('shape', [(3, 64, 64), (1, 1, 64, 64), (1, 64, 64, 3), (3,)])
def test_images_of_another_shape_are_refused(vlm, shape):
    with pytest.raises(ValueError, match=r'images must be \(B, 3, H, W\), got \('):
        vlm.encode_dense(torch.zeros(shape))


def test_images_smaller_than_a_patch_are_refused(vlm, family):
    with pytest.raises(ValueError, match=r'images of \(64, 7\) px are smaller than one patch \('):
        vlm.encode_image(torch.zeros(1, 3, 64, 7))
    assert vlm.encode_dense(torch.zeros(1, 3, PATCH[family], 64)).shape[-2] == 1


def test_images_take_the_dtype_of_the_weights(vlm):
    images = torch.randn(1, 3, 48, 48).half()
    assert torch.equal(vlm.encode_dense(images), vlm.encode_dense(images.float()))


def test_bfloat16_is_close(tiny_vlm, family, vlm):
    low = tiny_vlm(family, dtype='bfloat16')
    images, tokens = torch.randn(2, 3, 48, 80), torch.randint(1, 600, (3, 16))
    with torch.no_grad():
        dense, image, text = low.encode_dense(images), low.encode_image(images), low.encode_text(tokens)
        regions = low.encode_boxes(images, boxes(3, 2))
    assert {dense.dtype, image.dtype, text.dtype} == {torch.bfloat16}
    assert regions.dtype == torch.float32
    assert similarity(dense, vlm.encode_dense(images), dim=1) > 0.99
    assert similarity(image, vlm.encode_image(images)) > 0.99
    assert similarity(text, vlm.encode_text(tokens)) > 0.99


def test_autocast_is_close(vlm):
    images = torch.randn(2, 3, 48, 80)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        dense = vlm.encode_dense(images)
    assert similarity(dense, vlm.encode_dense(images), dim=1) > 0.99


def test_modes_differ_in_the_dense_map_only(tiny_vlm, family, vlm):
    images = torch.randn(1, 3, 48, 48)
    vanilla = tiny_vlm(family, dense_mode='vanilla')
    assert similarity(vanilla.encode_dense(images), vlm.encode_dense(images), dim=1) < 0.999
    torch.testing.assert_close(vanilla.encode_image(images), vlm.encode_image(images))
    torch.testing.assert_close(vanilla.encode_blocks(images, [-1]), vlm.encode_blocks(images, [-1]))


def test_the_image_and_its_dense_map_from_one_pass(vlm):
    images = torch.randn(2, 3, 48, 64)
    image, dense = vlm.visual.encode_image_and_dense(images)
    torch.testing.assert_close(image, vlm.encode_image(images, normalize=False))
    torch.testing.assert_close(dense, vlm.encode_dense(images, normalize=False))


# --- blocks -----------------------------------------------------------------------------------------------------------


def test_blocks_come_in_the_order_of_the_request(vlm):
    images = torch.randn(1, 3, 48, 64)
    every = vlm.encode_blocks(images, range(len(vlm.visual.blocks)))
    last = len(every) - 1
    picked = vlm.encode_blocks(images, [-1, 0, last, -2])
    for ours, expected in zip(picked, (every[last], every[0], every[last], every[last - 1]), strict=True):
        assert torch.equal(ours, expected)
    assert every[0].shape == (1, vlm.visual.width, *vlm.visual.grid_of(images))
    assert vlm.encode_blocks(images, []) == []


@pytest.mark.parametrize('index', [9, -9])
def test_a_block_that_does_not_exist(vlm, index):
    with pytest.raises(ValueError, match=rf'block {index} does not exist; this tower has blocks 0\.\.[23]'):
        vlm.encode_blocks(torch.zeros(1, 3, 48, 48), [0, index])


# --- regions ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('counts', [(2, 5), (3, 0), (0, 1), (0, 0)])
def test_regions_come_image_by_image(vlm, family, counts):
    images = torch.randn(2, 3, 48, 80)
    all_boxes = boxes(*counts)
    all_masks = masks((48 // PATCH[family], 80 // PATCH[family]), *counts)
    for encode, regions in ((vlm.encode_boxes, all_boxes), (vlm.encode_masks, all_masks)):
        features = encode(images, regions)
        assert features.shape == (sum(counts), 48)
        singles = [encode(image[None], [region]) for image, region in zip(images, regions, strict=True)]
        torch.testing.assert_close(features, torch.cat(singles), rtol=1e-5, atol=1e-6)


def test_boxes_are_not_normalised_and_masks_are(vlm, family):
    images = torch.randn(1, 3, 64, 64)
    whole_box, whole_mask = torch.tensor([[0.0, 0, 1, 1]]), torch.ones(1, 64 // PATCH[family], 64 // PATCH[family])
    mean = vlm.encode_dense(images).mean((-2, -1))
    torch.testing.assert_close(vlm.encode_boxes(images, [whole_box]), mean)
    torch.testing.assert_close(vlm.encode_masks(images, [whole_mask]), F.normalize(mean, dim=-1))
    assert mean.norm() < 0.99


def test_an_empty_mask_has_a_zero_feature(vlm, family):
    side = 48 // PATCH[family]
    features = vlm.encode_masks(torch.randn(1, 3, 48, 48), [torch.stack([torch.zeros(side, side), torch.eye(side)])])
    assert not features[0].any()
    assert features[1].norm().item() == pytest.approx(1, abs=1e-5)


def test_boolean_masks(vlm, family):
    images, flags = torch.randn(1, 3, 48, 48), masks((48 // PATCH[family],) * 2, 4)
    assert torch.equal(vlm.encode_masks(images, [flags[0].bool()]), vlm.encode_masks(images, flags))


def test_masks_off_the_token_grid_are_refused(vlm):
    with pytest.raises(ValueError, match=r'regions live on a \(5, 5\) grid but the dense features on a'):
        vlm.encode_masks(torch.randn(1, 3, 48, 48), masks((5, 5), 2))


@pytest.mark.parametrize(('images', 'lists'), [(1, 2), (2, 1)])
def test_one_list_of_regions_per_image(vlm, images, lists):
    with pytest.raises(ValueError, match=f'regions of {lists} images but dense features of {images}'):
        vlm.encode_boxes(torch.randn(images, 3, 48, 48), boxes(*[2] * lists))


def test_region_features_carry_gradient(tiny_vlm, family):
    vlm = tiny_vlm(family)
    vlm.encode_boxes(torch.randn(1, 3, 48, 48), boxes(2)).sum().backward()
    assert vlm.visual.blocks[0].get_parameter('mlp.' + ('fc2' if family == 'eva' else 'c_proj') + '.weight').grad.any()


# --- classes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('kind', ['boxes', 'masks'])
def test_regions_are_classified_by_cosine_and_logit_scale(word_vlm, kind):
    images = torch.randn(2, 3, 16, 24)
    regions = boxes(3, 1) if kind == 'boxes' else masks((2, 3), 3, 1)
    vocabulary = {'things': ['cat', 'apple'], 'stuff': ['sky']}
    probabilities = word_vlm.classify_regions(images, regions, vocabulary, ['a photo of {article} {}', 'the {}'])
    assert not probabilities.requires_grad
    torch.testing.assert_close(probabilities.sum(1), torch.ones(4))
    features = F.normalize(
        (word_vlm.encode_boxes if kind == 'boxes' else word_vlm.encode_masks)(images, regions), dim=1
    )
    names = build_vocabulary(vocabulary).names
    texts = class_embeddings(word_vlm, names, ['a photo of {article} {}', 'the {}'], normalize=True)
    expected = (features @ texts.T / 0.07).softmax(1)
    torch.testing.assert_close(probabilities, expected.detach())
    again = word_vlm.classify_regions(images, regions, list(names), ['a photo of {article} {}', 'the {}'])
    assert torch.equal(again, probabilities)


def test_regions_are_classified_by_the_synonyms_of_a_vocabulary(word_vlm):
    images, regions = torch.randn(1, 3, 16, 24), boxes(3)
    vocabulary = build_vocabulary({'things': ['cat'], 'stuff': ['sky'], 'synonyms': {'sky': ['tree', 'apple']}})
    probabilities = word_vlm.classify_regions(images, regions, vocabulary, ['the {}'])
    texts = class_embeddings(word_vlm, vocabulary, ['the {}'], normalize=True)
    features = F.normalize(word_vlm.encode_boxes(images, regions), dim=1)
    torch.testing.assert_close(probabilities, (features @ texts.T / 0.07).softmax(1).detach())
    plain = word_vlm.classify_regions(images, regions, vocabulary.names, ['the {}'])
    assert not torch.allclose(probabilities, plain)


def test_models_without_a_tokenizer_say_so(vlm):
    with pytest.raises(RuntimeError, match=r"vocabulary is not CLIP's: set text_cfg.words or vlm.tokenizer"):
        vlm.classify_regions(torch.randn(1, 3, 48, 48), boxes(1), ['cat'])


def test_one_text_or_many(word_vlm):
    assert torch.equal(word_vlm.tokenize('the cat'), word_vlm.tokenize(['the cat']))
    assert word_vlm.tokenize(('the cat', 'a sky')).shape == (2, 10)


def test_names_of_the_weights(vlm):
    assert {key.split('.')[0] for key in vlm.state_dict()} == {'visual', 'text', 'logit_scale'}
    assert {key.split('.')[1] for key in vlm.state_dict() if key.startswith('visual.')} == {'trunk'}


def test_a_new_model_starts_at_clip_s_temperature(word_arch):
    assert load_vlm(word_arch).logit_scale.exp().item() == pytest.approx(1 / 0.07)
