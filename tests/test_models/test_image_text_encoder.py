"""Embeddings of images and of their captions: those of the two-tower model, one caption list per image."""

from __future__ import annotations

import pytest
import torch
from mmengine.structures import BaseDataElement

from densevlm_mm.models import ImageTextEncoder
from densevlm_mm.registry import MODELS
from densevlm_mm.vlm import load_vlm

CAPTIONS = [['a photo of a car', 'a car and a tree on sand'], ['a photo of a ball'], ['a fish', 'a cup', 'a boat']]


def make_samples() -> list[BaseDataElement]:
    samples = [BaseDataElement(metainfo={'img_id': number}) for number in range(len(CAPTIONS))]
    for sample, captions in zip(samples, CAPTIONS, strict=True):
        sample.captions = captions
    return samples


@pytest.fixture
def model(tiny_arch) -> ImageTextEncoder:
    return MODELS.build({'type': 'densevlm_mm.ImageTextEncoder', 'vlm': {'arch': tiny_arch()}}).eval()


def test_embeddings_are_those_of_single_images_and_captions(model):
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    samples = model.test_step({'inputs': list(images), 'data_samples': make_samples()})
    normalized = model.data_preprocessor({'inputs': images})['inputs']
    assert normalized.abs().max() < 4
    for image, captions, sample in zip(normalized, CAPTIONS, samples, strict=True):
        torch.testing.assert_close(sample.image_embedding, model.vlm.encode_image(image[None])[0], rtol=1e-4, atol=1e-6)
        assert sample.text_embeddings.shape == (len(captions), 16)
        for caption, text in zip(captions, sample.text_embeddings, strict=True):
            expected = model.vlm.encode_text(model.vlm.tokenize(caption))[0]
            torch.testing.assert_close(text, expected, rtol=1e-4, atol=1e-6)
            assert text.norm() == pytest.approx(1, abs=1e-5)


def test_half_precision_weights_give_fp32_embeddings(tiny_arch):
    model = ImageTextEncoder(vlm={'arch': tiny_arch(), 'dtype': 'bfloat16'}).eval()
    sample = model(torch.randn(3, 3, 32, 32), make_samples(), mode='predict')[0]
    assert sample.image_embedding.dtype == sample.text_embeddings.dtype == torch.float32


def test_weights_are_loaded_strictly(model, tiny_arch, tmp_path):
    other = load_vlm(tiny_arch())
    torch.save(other.state_dict(), tmp_path / 'other.pt')
    model.load_weights(tmp_path / 'other.pt')
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.vlm.state_dict().items())
    torch.save(load_vlm(tiny_arch(width=48)).state_dict(), tmp_path / 'wide.pt')
    with pytest.raises(ValueError, match='wide.pt does not fit'):
        model.load_weights(tmp_path / 'wide.pt')


def test_is_for_evaluation_only(model):
    with pytest.raises(NotImplementedError, match='ImageTextEncoder is for evaluation'):
        model(torch.randn(1, 3, 32, 32), make_samples()[:1], mode='loss')
    with pytest.raises(ValueError, match='mode must be'):
        model(torch.randn(1, 3, 32, 32), make_samples()[:1], mode='prediction')
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ['vlm.logit_scale']
