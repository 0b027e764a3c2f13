from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from densevlm_mm.datasets import LoadPanopticRegions, PanopticRegionDataset
from densevlm_mm.datasets.transforms import downsample_mask
from densevlm_mm.datasets.transforms.panoptic_regions import mask_bbox


@pytest.mark.parity
def test_masks_are_those_of_the_reference(parity):
    """Filled ellipses (cy, cx, ry, rx) in images of 480 x 640; two of them vanish at 32 x 32 tokens."""
    y, x = np.mgrid[:480, :640]
    for (cy, cx, ry, rx), expected in zip(parity['mask_ellipses'], parity['mask_low'], strict=True):
        mask = ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1
        small = downsample_mask(torch.from_numpy(mask), 32)
        assert small.dtype == torch.float32
        np.testing.assert_array_equal(small.numpy(), expected.astype(np.float32))


@given(st.integers(10, 200), st.integers(10, 200), st.sampled_from([4, 14, 32]))
def test_full_mask_covers_the_image_but_not_the_padding(height, width, grid_size):
    small = downsample_mask(torch.ones(height, width, dtype=torch.bool), grid_size)
    rows, cols = (max(1, round(side * grid_size / max(height, width))) for side in (height, width))
    assert small.shape == (grid_size, grid_size)
    assert small[:rows, :cols].all() and small.sum() == rows * cols
    assert not downsample_mask(torch.zeros(height, width, dtype=torch.bool), grid_size).any()


@given(st.integers(0, 19), st.integers(0, 29), st.integers(0, 19), st.integers(0, 29))
def test_mask_bbox_spans_the_pixel_indices(top, left, bottom, right):
    mask = np.zeros((20, 30), bool)
    mask[top, left] = mask[bottom, right] = True
    x, y, width, height = mask_bbox(mask)
    assert (x, x + width) == (min(left, right), max(left, right))
    assert (y, y + height) == (min(top, bottom), max(top, bottom))


def load(folder, index: int = 0, pipeline: tuple = (), **options):
    dataset = PanopticRegionDataset(
        data_root=str(folder),
        ann_file='panoptic.json',
        data_prefix={'img_path': 'images', 'seg_map_path': 'maps'},
        pipeline=[
            {'type': 'densevlm_mm.LoadImage'},
            {'type': 'densevlm_mm.ResizeLongestPad', 'size': 64},
            {'type': 'densevlm_mm.LoadPanopticRegions', 'patch_size': 8, **options},
            *pipeline,
        ],
    )
    return dataset[index]


def test_regions_of_an_image(panoptic_folder):
    results = load(panoptic_folder)
    regions = results['gt_regions']
    # The thing's box is the annotation's, the stuff's spans its pixels; the small thing is dropped.
    expected = torch.tensor([[2, 4, 12, 16], [20, 0, 39, 29]]) / 40
    torch.testing.assert_close(regions.boxes, expected)
    assert regions.boxes.dtype == torch.float32
    assert regions.labels.tolist() == [0, 2] and regions.labels.dtype == torch.int64
    assert regions.is_thing.tolist() == [True, False] and regions.is_thing.dtype == torch.bool
    assert regions.masks.shape == (2, 8, 8) and regions.masks.dtype == torch.float32
    assert regions.masks[1, :6, 4:].all() and regions.masks[1].sum() == 24


def test_area_range_counts_pixels_of_the_original_image(panoptic_folder):
    assert load(panoptic_folder, area_range=(25, 1024**2))['gt_regions'].labels.tolist() == [0, 2, 0]
    assert load(panoptic_folder, area_range=(120, 19 * 29))['gt_regions'].labels.tolist() == [0, 2]
    assert load(panoptic_folder, area_range=(121, 19 * 29 - 1))['gt_regions'].labels.tolist() == []


def test_first_segments_are_looked_at(panoptic_folder):
    assert load(panoptic_folder, max_regions=1)['gt_regions'].labels.tolist() == [0]


def test_image_without_regions_gives_empty_tensors(panoptic_folder):
    for regions in (
        load(panoptic_folder, index=1)['gt_regions'],
        load(panoptic_folder, area_range=(10**6, 10**7))['gt_regions'],
    ):
        assert regions.boxes.shape == (0, 4) and regions.masks.shape == (0, 8, 8)
        assert regions.labels.shape == regions.is_thing.shape == (0,)
        assert (regions.labels.dtype, regions.is_thing.dtype) == (torch.int64, torch.bool)


def test_patch_that_does_not_divide_the_size_is_floored(panoptic_folder):
    assert load(panoptic_folder, patch_size=14)['gt_regions'].masks.shape == (2, 4, 4)


def test_packed_item(panoptic_folder):
    item = load(panoptic_folder, pipeline=[{'type': 'densevlm_mm.PackRegions'}])
    sample = item['data_samples']
    assert item['inputs'].shape == (3, 64, 64) and item['inputs'].dtype == torch.uint8
    assert sample.img_id == 7 and sample.scale == 1.6
    assert (sample.ori_shape, sample.img_shape) == ((30, 40), (64, 64))
    assert len(sample.gt_regions) == 2


def test_crops_are_those_of_pillow(panoptic_folder):
    """The thing (2, 4, 12, 16) grows by a half around (7, 10) and is clipped; the stuff (20, 0, 39, 29) stays."""
    results = load(panoptic_folder, crop_size=24)
    image = Image.open(panoptic_folder / 'images' / 'a.jpg')
    expected = []
    for box in ((0, 1, 14, 19), (20, 0, 39, 29)):  # -0.5 and 14.5 are clipped and rounded to even
        crop = image.crop(box)
        scale = 24 / max(crop.size)
        crop = crop.resize([round(side * scale) for side in crop.size], Image.Resampling.BICUBIC)
        square = Image.new('RGB', (24, 24))
        square.paste(crop, ((24 - crop.width) // 2, (24 - crop.height) // 2))
        expected.append(np.asarray(square))
    np.testing.assert_array_equal(results['crops'].permute(0, 2, 3, 1), np.stack(expected))
    assert load(panoptic_folder, index=1, crop_size=24)['crops'].shape == (0, 3, 24, 24)
    assert 'crops' not in load(panoptic_folder)


def test_crops_are_packed_with_the_regions(panoptic_folder):
    pack = [{'type': 'densevlm_mm.PackRegions'}]
    assert load(panoptic_folder, crop_size=24, pipeline=pack)['data_samples'].gt_regions.crops.shape == (2, 3, 24, 24)


def test_sizes_are_checked(panoptic_folder):
    with pytest.raises(ValueError, match='images of 64 px are smaller than a patch of 65 px'):
        load(panoptic_folder, patch_size=65)
    with pytest.raises(ValueError, match='patch_size must be positive'):
        LoadPanopticRegions(patch_size=0)
    with pytest.raises(ValueError, match='size and enlarge must be positive'):
        LoadPanopticRegions(crop_size=0)


def test_map_without_a_segment_is_an_error(panoptic_folder, rewrite):
    rewrite(lambda content: content['annotations'][0]['segments_info'][1].update(id=1234))
    with pytest.raises(ValueError, match='a.png: has no pixel of segment 1234'):
        load(panoptic_folder)


@pytest.mark.parametrize(
    'image, message',
    [
        (Image.new('RGB', (30, 40)), 'a.png: is 30x40 px, but its image .*a.jpg is 40x30 px'),
        (Image.new('L', (40, 30)), 'a.png: is no RGB image but L'),
    ],
)
def test_map_that_does_not_fit_is_an_error(panoptic_folder, image, message):
    image.save(panoptic_folder / 'maps' / 'a.png')
    with pytest.raises(ValueError, match=message):
        load(panoptic_folder)


def test_missing_or_broken_map_is_named(panoptic_folder):
    path = panoptic_folder / 'maps' / 'a.png'
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match='a.png: cannot be decoded'):
        load(panoptic_folder)
    path.unlink()
    with pytest.raises(FileNotFoundError, match='a.png'):
        load(panoptic_folder)


def test_typo_is_an_error():
    with pytest.raises(TypeError, match='patchsize'):
        LoadPanopticRegions(patchsize=16)
