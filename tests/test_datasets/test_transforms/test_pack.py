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


def fingerprint(**changes: object) -> str:
    return PackRegions(fingerprint=True)(results(3) | changes)['data_samples'].fingerprint


def test_fingerprints_tell_inputs_apart():
    other_pixel = results(3)['img']
    other_pixel[7, 7, 2] += 1
    same = [fingerprint(), fingerprint(img_path='moved.jpg', img_id=9, gt_regions=InstanceData())]
    others = [fingerprint(img=other_pixel), fingerprint(ori_shape=(8, 6)), fingerprint(scale=0.5)]
    others.append(fingerprint(img=np.full((4, 16, 3), (3, 1, 2), np.uint8)))
    assert same[0] == same[1] and len({same[0], *others}) == 5
    assert len(bytes.fromhex(same[0])) == 16


def test_grid_is_packed():
    sample = PackRegions()(results(2) | {'grid': (2, 3), 'cells': (0, 4)})['data_samples']
    assert (sample.grid, sample.cells) == ((2, 3), (0, 4))
    assert 'fingerprint' not in sample
