"""What models that hold a VLM take over from a checkpoint, and what their predictions do not depend on."""

from __future__ import annotations

import pytest
import torch
from mmengine.structures import BaseDataElement, InstanceData

from densevlm_mm.models import ImageTextEncoder, RegionClassifier
from densevlm_mm.vlm import class_embeddings, load_vlm

HALF = [0.5, 0.5, 0.5]


@pytest.fixture
def checkpoint(tiny_arch, tmp_path) -> str:
    """A file whose images were normalised in another way, and whose dense mode is 'csa'."""
    said = {'arch': tiny_arch(), 'dense_mode': 'csa', 'mean': HALF, 'std': HALF}
    torch.save({'meta': {'vlm': said}, 'state_dict': load_vlm(tiny_arch()).state_dict()}, tmp_path / 'half.pth')
    return str(tmp_path / 'half.pth')


def build(arch: dict, **options) -> RegionClassifier:
    templates = ['a photo of a {}.']
    return RegionClassifier(vlm={'arch': arch}, eval_vocabulary=['car', 'tree'], eval_templates=templates, **options)


def test_pixels_are_normalised_as_the_file_says(tiny_arch, checkpoint):
    model = build(tiny_arch())
    model.load_weights(checkpoint)
    assert model.pixels == (tuple(HALF), tuple(HALF))
    torch.testing.assert_close(model.data_preprocessor.mean.flatten(), torch.full((3,), 127.5))
    torch.testing.assert_close(model.data_preprocessor.std.flatten(), torch.full((3,), 127.5))


def test_a_preprocessor_of_ones_own_stays(tiny_arch, checkpoint):
    own = {'type': 'ImgDataPreprocessor', 'mean': [51.0, 51.0, 51.0], 'std': [102.0, 102.0, 102.0]}
    model = build(tiny_arch(), data_preprocessor=own)
    model.load_weights(checkpoint)
    mean, std = model.pixels
    assert (mean, std) == (pytest.approx((0.2, 0.2, 0.2)), pytest.approx((0.4, 0.4, 0.4)))


def test_the_dense_mode_of_one_file_does_not_outlast_the_next(tiny_arch, checkpoint, tmp_path):
    torch.save(load_vlm(tiny_arch()).state_dict(), tmp_path / 'plain.pt')
    model = build(tiny_arch())
    model.load_weights(checkpoint)
    assert model.vlm.dense_mode == 'csa'
    model.load_weights(tmp_path / 'plain.pt')
    assert model.vlm.dense_mode == 'value'


def test_class_embeddings_do_not_depend_on_the_precision_around_them(tiny_arch, tmp_path, monkeypatch):
    vlm = load_vlm(tiny_arch())
    monkeypatch.setenv('DENSEVLM_CACHE', str(tmp_path / 'half'))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        half = class_embeddings(vlm, ['car', 'tree'], ['a {}'])
    monkeypatch.setenv('DENSEVLM_CACHE', str(tmp_path / 'whole'))
    assert torch.equal(half, class_embeddings(vlm, ['car', 'tree'], ['a {}']))


def test_logits_are_whole_under_autocast(tiny_arch):
    regions = InstanceData(boxes=torch.tensor([[0.1, 0.1, 0.6, 0.7]]), masks=torch.ones(1, 4, 4))
    regions.crops = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    model = build(tiny_arch()).eval()
    with torch.no_grad(), torch.autocast('cpu', dtype=torch.bfloat16):
        (sample,) = model(torch.randn(1, 3, 32, 32), [BaseDataElement(gt_regions=regions)], mode='predict')
    for logits in (sample.pred_regions[key] for key in ('box_logits', 'mask_logits', 'crop_logits')):
        assert logits.dtype == torch.float32


def test_embeddings_for_retrieval_have_norm_1_in_half_precision(tiny_arch):
    model = ImageTextEncoder(vlm={'arch': tiny_arch(), 'dtype': 'bfloat16'}).eval()
    sample = BaseDataElement(captions=['a car', 'a star and a tree'])
    with torch.no_grad():
        (sample,) = model(torch.randn(1, 3, 32, 32), [sample], mode='predict')
    norms = torch.cat([sample.image_embedding[None], sample.text_embeddings]).norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones(3), rtol=0, atol=1e-6)
