from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmengine.structures import InstanceData

from densevlm_mm.datasets import CropRegions, LoadPanopticRegions, PackRegions, ResizeLongestPad, SampleGridRegions
from densevlm_mm.datasets.transforms import crop_image, enlarge_boxes

MEAN = np.array((0.48145466, 0.4578275, 0.40821073), np.float32)
STD = np.array((0.26862954, 0.26130258, 0.27577711), np.float32)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def cropped(image: np.ndarray, boxes: list, size: int = 16, **options) -> torch.Tensor:
    results = {'ori_img': image, 'ori_boxes': torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)}
    results['gt_regions'] = InstanceData(boxes=results['ori_boxes'], **options.pop('fields', {}))
    return CropRegions(size, **options)(results)['crops']


@pytest.mark.parity
@pytest.mark.parametrize('number', range(3))
def test_pixels_are_those_of_the_reference(parity, number):
    """The whole image as one crop; number 2 is grey."""
    image = parity[f'img{number}']
    image = image if image.ndim == 3 else np.repeat(image[:, :, None], 3, axis=2)
    height, width = image.shape[:2]
    crop = crop_image(image, (0, 0, width, height), 48)
    normalized = (crop.astype(np.float32) / 255 - MEAN) / STD
    np.testing.assert_array_equal(normalized.transpose(2, 0, 1), parity[f'crop{number}_48'])


def test_half_pixels_are_rounded_to_even_ones():
    image = noise(40, 40)
    found = crop_image(image, (3.5, 4.5, 20.5, 20.49), 16)
    np.testing.assert_array_equal(found, image[4:20, 4:20])


@given(st.integers(1, 60), st.integers(1, 60), st.sampled_from([8, 15, 32]))
def test_crop_fills_the_longest_side_and_lies_in_the_middle(width, height, size):
    crop = crop_image(np.full((60, 60, 3), 255, np.uint8), (0, 0, width, height), size)
    expected = [max(1, round(side * (size / max(width, height)))) for side in (height, width)]
    assert max(expected) == size
    assert crop.sum() == 3 * 255 * expected[0] * expected[1]
    for axis, side in enumerate(expected):
        lit = np.flatnonzero(crop.any(axis=(1 - axis, 2)))
        assert lit[0] == (size - side) // 2 and lit[-1] == lit[0] + side - 1


@pytest.mark.parametrize('box', [(5, 5, 5, 9), (5.2, 5.1, 5.4, 5.3), (0, 0, 0, 0)])
def test_box_without_area_becomes_a_pixel_wide(box):
    assert crop_image(np.full((20, 20, 3), 255, np.uint8), box, 8).any()


@given(
    corners=st.lists(st.floats(0, 60), min_size=4, max_size=4),
    factor=st.floats(0.2, 4),
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
)
def test_enlarged_boxes_keep_their_centre_and_stay_in_the_image(corners, factor, size):
    width, height = size
    x1, x2 = sorted(corners[:2])
    y1, y2 = sorted(corners[2:])
    box = torch.tensor([[min(x1, width), min(y1, height), min(x2, width), min(y2, height)]])
    found = enlarge_boxes(box, factor, width, height)[0].tolist()
    left, top, right, bottom = box[0].double().tolist()
    for low, high, limit, centre, half in (
        (found[0], found[2], width, (left + right) / 2, (right - left) / 2 * factor),
        (found[1], found[3], height, (top + bottom) / 2, (bottom - top) / 2 * factor),
    ):
        assert low == pytest.approx(max(0, centre - half), abs=1e-4)
        assert high == pytest.approx(min(limit, centre + half), abs=1e-4)


def test_crops_are_in_the_order_of_the_boxes():
    image = noise(40, 60)
    crops = cropped(image, [[0, 0, 16, 16], [20, 10, 36, 26]])
    assert crops.dtype == torch.uint8 and crops.is_contiguous()
    np.testing.assert_array_equal(crops[0].permute(1, 2, 0), image[:16, :16])
    np.testing.assert_array_equal(crops[1].permute(1, 2, 0), image[10:26, 20:36])


def test_things_are_enlarged_and_stuff_is_not():
    image = noise(40, 60)
    boxes = [[20, 10, 36, 26], [20, 10, 36, 26]]
    crops = cropped(image, boxes, enlarge=1.5, fields={'is_thing': torch.tensor([True, False])})
    np.testing.assert_array_equal(crops[0].permute(1, 2, 0), crop_image(image, (16, 6, 40, 30), 16))
    np.testing.assert_array_equal(crops[1].permute(1, 2, 0), image[10:26, 20:36])
    assert torch.equal(cropped(image, boxes, enlarge=1.5)[1], crops[0])  # where nothing is known, all of them


def test_image_without_regions_has_no_crops():
    assert cropped(noise(20, 20), []).shape == (0, 3, 16, 16)


def test_grids_reach_the_model_with_their_crops():
    results = {'img': noise(30, 40), 'ori_shape': (30, 40), 'epoch': 0, 'sample_idx': 0}
    for transform in (ResizeLongestPad(64), SampleGridRegions(shuffle=True), CropRegions(8), PackRegions()):
        results = transform(results)
    regions = results['data_samples'].gt_regions
    assert regions.crops.shape == (len(regions.boxes), 3, 8, 8)
    x1, y1, x2, y2 = (regions.boxes[0] * 40).tolist()
    np.testing.assert_array_equal(regions.crops[0].permute(1, 2, 0), crop_image(noise(30, 40), (x1, y1, x2, y2), 8))


def test_panoptic_regions_have_crops(panoptic_folder):
    segments = [{'id': 259, 'label': 0, 'is_thing': True, 'bbox': [2, 4, 10, 12]}]
    segments += [{'id': 5, 'label': 2, 'is_thing': False, 'bbox': None}]
    image = noise(30, 40)
    results = {'img': image, 'ori_shape': (30, 40), 'img_path': 'a.jpg', 'segments_info': segments}
    results['seg_map_path'] = str(panoptic_folder / 'maps' / 'a.png')
    for transform in (ResizeLongestPad(64), LoadPanopticRegions(), CropRegions(8, enlarge=1.5)):
        results = transform(results)
    thing, stuff = results['crops'].permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(thing, crop_image(image, (0, 1, 14.5, 19), 8))
    np.testing.assert_array_equal(stuff, crop_image(image, (20, 0, 39, 29), 8))


@pytest.mark.parametrize('options', [{'size': 0}, {'size': 8, 'enlarge': 0}])
def test_sizes_must_be_positive(options):
    with pytest.raises(ValueError, match='must be positive'):
        CropRegions(**options)


def test_a_pipeline_without_the_original_image_is_told_what_to_do():
    with pytest.raises(ValueError, match='load with LoadImage and ResizeLongestPad'):
        CropRegions(size=8)({'img': np.zeros((8, 8, 3), np.uint8)})
