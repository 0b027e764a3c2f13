from __future__ import annotations

import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from mmengine.structures import InstanceData

from densevlm_mm.datasets import PackRegions


def results(number: int) -> dict:
    return {
        'img': np.full((8, 8, 3), (number, 1, 2), np.uint8),
        'img_path': f'{number}.jpg',
        'img_id': number,
        'ori_shape': (6, 8),
        'img_shape': (8, 8),
        'scale': 1.0,
        'sample_idx': number,
        'gt_regions': InstanceData(boxes=torch.zeros(number, 4)),
    }


def test_items_collate_to_a_batch():
    batch = pseudo_collate([PackRegions()(results(number)) for number in (3, 4)])
    assert [image[:, 0, 0].tolist() for image in batch['inputs']] == [[3, 1, 2], [4, 1, 2]]
    assert all(image.is_contiguous() for image in batch['inputs'])
    assert [len(sample.gt_regions) for sample in batch['data_samples']] == [3, 4]
    assert batch['data_samples'][1].metainfo == {
        'img_path': '4.jpg',
        'img_id': 4,
        'ori_shape': (6, 8),
        'img_shape': (8, 8),
        'scale': 1.0,
    }


def test_regions_are_optional():
    plain = results(1)
    del plain['gt_regions']
    assert 'gt_regions' not in PackRegions()(plain)['data_samples']
