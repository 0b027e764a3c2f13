"""Images are moved and normalised; data samples are not touched."""

from __future__ import annotations

import pytest
import torch
from mmengine.dataset import default_collate, pseudo_collate
from mmengine.model import ImgDataPreprocessor
from mmengine.structures import BaseDataElement, InstanceData

from densevlm_mm.models.preprocessor import VLMPreprocessor, send

OPTIONS = dict(mean=[127.5] * 3, std=[51.0] * 3)


def items() -> list[dict]:
    regions = [InstanceData(boxes=torch.rand(count, 4)) for count in (2, 5)]
    images = [torch.randint(256, (3, 8, 6), dtype=torch.uint8) for _ in regions]
    return [
        {'inputs': image, 'data_samples': BaseDataElement(gt_regions=of)}
        for image, of in zip(images, regions, strict=True)
    ]


def test_stacked_and_listed_images_come_out_alike():
    batch = items()
    listed, stacked = (VLMPreprocessor(**OPTIONS)(collate(batch)) for collate in (pseudo_collate, default_collate))
    assert listed['inputs'].shape == (2, 3, 8, 6)
    torch.testing.assert_close(listed['inputs'][1], (batch[1]['inputs'] - 127.5) / 51)
    assert torch.equal(listed['inputs'], stacked['inputs'])


@pytest.mark.parametrize('dtype', [torch.uint8, torch.float32])
@pytest.mark.parametrize(
    'options', [{}, {'pad_size_divisor': 4, 'pad_value': 7}, {'pad_size_divisor': 2}, {'bgr_to_rgb': True}]
)
def test_images_come_out_as_from_mmengine(options, dtype):
    images = torch.randint(256, (2, 3, 8, 6), generator=torch.Generator().manual_seed(0)).to(dtype)
    before = images.clone()
    options = {'mean': [122.7, 116.7, 104.1], 'std': [68.5, 66.6, 70.3], **options}
    ours, theirs = (make(**options)({'inputs': images}) for make in (VLMPreprocessor, ImgDataPreprocessor))
    assert ours.keys() == theirs.keys()
    assert ours['data_samples'] is None
    assert torch.equal(ours['inputs'], theirs['inputs'])
    assert torch.equal(images, before)


def test_images_that_are_not_to_be_normalised_stay_as_they_are():
    images = torch.randint(256, (2, 3, 8, 6), dtype=torch.uint8)
    assert torch.equal(VLMPreprocessor()({'inputs': images})['inputs'], images.float())


def test_data_samples_stay_where_they_are():
    batch = items()
    preprocessor = VLMPreprocessor(**OPTIONS).to('meta')
    out = preprocessor.cast_data(default_collate(batch))
    assert out['inputs'].device.type == 'meta'
    for item, sample in zip(batch, out['data_samples'], strict=True):
        assert sample is item['data_samples']
        assert sample.gt_regions.boxes.device.type == 'cpu'


def test_sending_to_where_it_is_costs_nothing():
    tensor = torch.rand(3)
    assert send(tensor, torch.device('cpu')) is tensor
    assert send(tensor, torch.device('meta')).device.type == 'meta'
