"""The plain way gives this project's numbers, part by part."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mmengine.model import ImgDataPreprocessor
from torch import Tensor

from densevlm_mm.benchmark.photos import PhotoFolder
from densevlm_mm.benchmark.reference_like import (
    CropGridDataset,
    alignment_loss,
    box_features,
    dense_features,
    image_embeddings,
    mask_features,
    valid_boxes,
)
from densevlm_mm.benchmark.synthetic import TINY_ARCHS
from densevlm_mm.datasets import ImageDataset
from densevlm_mm.vlm import load_vlm
from densevlm_mm.vlm.towers import CLIP_MEAN, CLIP_STD

CLOSE = dict(rtol=1e-5, atol=1e-6)


@pytest.fixture(scope='module')
def photos(tmp_path_factory) -> PhotoFolder:
    return PhotoFolder(tmp_path_factory.mktemp('data'), 3)


@pytest.mark.parametrize('fused', [False, True])
@pytest.mark.parametrize('size', [(64, 64), (28, 28), (40, 72)])
@pytest.mark.parametrize('arch', TINY_ARCHS)
def test_towers(arch, size, fused):
    vlm, images = load_vlm(TINY_ARCHS[arch]), torch.randn(2, 3, *size)
    with torch.no_grad():
        dense, image = (f(vlm.visual, images, fused=fused) for f in (dense_features, image_embeddings))
        torch.testing.assert_close(dense, vlm.encode_dense(images), **CLOSE)
        torch.testing.assert_close(image, vlm.encode_image(images), **CLOSE)


def test_other_towers_are_refused():
    vision = {'image_size': 16, 'patch_size': 8, 'layers': 1, 'width': 64}
    text = {'context_length': 8, 'vocab_size': 8, 'width': 16, 'heads': 2, 'layers': 1}
    tower = load_vlm({'embed_dim': 8, 'vision_cfg': vision, 'text_cfg': text}).visual
    with pytest.raises(ValueError, match='EVA-02-CLIP towers, not for OpenAITower; .*--baseline none'):
        dense_features(tower, torch.randn(1, 3, 16, 16), fused=True)


def test_regions():
    vlm, images = load_vlm(TINY_ARCHS['tiny-student']), torch.randn(2, 3, 64, 64)
    boxes = [torch.tensor([[0.1, 0.2, 0.6, 0.9], [0.0, 0.0, 1.0, 1.0]]), torch.tensor([[0.3, 0.1, 0.4, 0.2]])]
    masks = [(torch.rand(2, 8, 8) > 0.5).float(), torch.zeros(1, 8, 8)]
    with torch.no_grad():
        dense = vlm.encode_dense(images)
        torch.testing.assert_close(box_features(dense, boxes), vlm.encode_boxes(images, boxes), **CLOSE)
        torch.testing.assert_close(mask_features(dense, masks), vlm.encode_masks(images, masks), **CLOSE)


def test_valid_boxes_are_the_flagged_ones():
    boxes = torch.rand(2, 3, 5)
    boxes[..., 4] = torch.tensor([[1, 0, 1], [0, 0, 0]])
    first, second = valid_boxes(boxes)
    assert torch.equal(first, boxes[0, [0, 2], :4])
    assert second.shape == (0, 4)


@pytest.mark.parity
@pytest.mark.parametrize('case', ['mixed', 'all_stuff', 'all_thing', 'none_valid'])
def test_loss_and_gradient_are_those_of_the_reference(case, data_dir):
    stored = np.load(data_dir / 'parity' / 'densevlm_loss.npz')

    def read(name: str) -> Tensor:
        return torch.from_numpy(stored[name])

    student = read(f'{case}_student').requires_grad_()
    loss = alignment_loss(student, read(f'{case}_teacher'), read('U'), read('P'), num_things=6)
    loss.backward()
    torch.testing.assert_close(loss.detach(), read(f'{case}_loss').reshape(()).float(), equal_nan=True)
    torch.testing.assert_close(student.grad.nan_to_num(), read(f'{case}_grad'), rtol=1e-4, atol=1e-5)


def test_items_are_those_of_the_project_and_crops(photos):
    theirs = CropGridDataset(photos.paths, size=64, crop_size=32)
    ours = ImageDataset(**photos.dataset_config(64))
    normalize = ImgDataPreprocessor(mean=[255 * m for m in CLIP_MEAN], std=[255 * s for s in CLIP_STD])
    for item in ((0, 0), (1, 2)):
        image, boxes, crops = theirs[item]
        packed = ours[item]
        expected = packed['data_samples'].gt_regions.boxes
        torch.testing.assert_close(image, normalize({'inputs': [packed['inputs']]})['inputs'][0])
        real = boxes[boxes[:, 4] == 1, :4]
        assert sorted(map(tuple, real.tolist())) == sorted(map(tuple, expected.tolist()))
        assert not boxes[len(real) :].any()
        assert crops.shape == (36, 3, 32, 32)
        assert crops[: len(real)].flatten(1).any(1).all()
        assert not crops[len(real) :].any()
