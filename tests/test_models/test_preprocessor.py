"""Images are moved and normalised; data samples are not touched."""

from __future__ import annotations

import torch
from mmengine.dataset import default_collate, pseudo_collate
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
