"""LoadLabelMap: labels of any number of classes through MMSegmentation's pipeline, or an error that names the file."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from mmcv.transforms import Compose, LoadImageFromFile, RandomFlip, Resize
from mmseg.datasets.transforms import LoadAnnotations as MMSegLoadAnnotations
from mmseg.datasets.transforms import PackSegInputs, RandomCrop, RandomRotate
from mmseg.models import SegDataPreProcessor
from PIL import Image

from densevlm_mm.registry import TRANSFORMS
from densevlm_mm.seg.label_maps import LoadLabelMap, to_labels

SHAPE = (12, 16)


def save(path: Path, values: np.ndarray) -> Path:
    Image.fromarray(values).save(path)
    return path


@pytest.fixture
def item(tmp_path) -> Callable[..., dict]:
    """Writes a label map and the image that goes with it; makes their item."""
    image = save(tmp_path / 'image.png', np.zeros((*SHAPE, 3), np.uint8))

    def make(values: np.ndarray, suffix: str = '.png', **options: object) -> dict:
        path = save(tmp_path / f'labels{suffix}', values)
        paths = {'img_path': str(image), 'seg_map_path': str(path), 'ori_shape': SHAPE}
        return {**paths, 'num_classes': 847, 'ignore_index': 65535, 'zero_label': 'keep', **options}

    return make


def all_labels(num_classes: int, ignore_index: int, dtype: type = np.uint16) -> np.ndarray:
    """The first, the last and some labels between, and what is ignored."""
    values = np.linspace(0, num_classes - 1, np.prod(SHAPE)).astype(dtype).reshape(SHAPE)
    values[0, :3] = ignore_index
    return values


class TestFiles:
    @pytest.mark.parametrize('suffix', ['.png', '.tif'])
    @pytest.mark.parametrize('num_classes', [256, 257, 459, 847, 65535])
    def test_of_16_bits_keep_every_label(self, item, suffix, num_classes):
        values = all_labels(num_classes, 65535)
        results = LoadLabelMap()(item(values, suffix, num_classes=num_classes))
        assert results['seg_fields'] == ['gt_seg_map'] and results['gt_seg_map'].dtype == np.int32
        np.testing.assert_array_equal(results['gt_seg_map'], values)

    @pytest.mark.parametrize('suffix', ['.png', '.tif'])
    def test_of_8_bits_hold_up_to_255_classes(self, item, suffix):
        values = all_labels(255, 255, np.uint8)
        results = LoadLabelMap()(item(values, suffix, num_classes=255, ignore_index=255))
        np.testing.assert_array_equal(results['gt_seg_map'], values)

    def test_with_a_palette_hold_indices(self, item, tmp_path):
        values = all_labels(21, 255, np.uint8)
        entry = item(values, num_classes=21, ignore_index=255)
        image = Image.fromarray(values).convert('P')
        image.putdata(values.ravel())
        image.putpalette(list(range(255, -1, -1)) * 3)
        image.save(entry['seg_map_path'])
        np.testing.assert_array_equal(LoadLabelMap()(entry)['gt_seg_map'], values)

    @pytest.mark.parametrize(
        ('values', 'options', 'message'),
        [
            (np.zeros(SHAPE, np.uint8), {}, 'has 8 bits, too few for 847 classes: .* 16 bits'),
            (np.zeros(SHAPE, np.uint8), {'num_classes': 256}, 'has 8 bits, too few for 256 classes'),
            (np.zeros((*SHAPE, 3), np.uint8), {}, 'is RGB, but a label map has one channel'),
            (np.full(SHAPE, 847, np.uint16), {}, r'value 847, but the 847 classes are stored as 0\.\.846 and 65535'),
            (np.full(SHAPE, 21, np.uint8), {'num_classes': 20, 'zero_label': 'ignore'}, r'value 21, .* 1\.\.20'),
            (np.full(SHAPE, 21, np.uint8), {'num_classes': 21, 'zero_label': 'last'}, r'value 21, .* 0\.\.20'),
            (np.zeros((12, 15), np.uint16), {}, 'is 15x12 px, but its image .*image.png is 16x12 px'),
        ],
    )
    def test_errors_name_the_file(self, item, values, options, message):
        entry = item(values, **options)
        with pytest.raises(ValueError, match=f'labels.png: .*{message}'):
            LoadLabelMap()(entry)

    def test_images_turned_by_exif_are_found_out(self, item):
        values = all_labels(847, 65535)
        entry = item(values)
        exif = Image.Exif()
        exif[0x0112] = 6
        entry['img_path'] = entry['img_path'].replace('.png', '.jpg')
        Image.new('RGB', SHAPE[::-1]).save(entry['img_path'], exif=exif)
        with pytest.raises(ValueError, match="is 16x12 px, .* 12x16 px; .*color_type='color_ignore_orientation'"):
            Compose([LoadImageFromFile(), LoadLabelMap()])(entry)
        results = Compose([LoadImageFromFile(color_type='color_ignore_orientation'), LoadLabelMap()])(entry)
        np.testing.assert_array_equal(results['gt_seg_map'], values)

    def test_a_damaged_or_missing_file_is_named(self, item):
        entry = item(all_labels(847, 65535))
        Path(entry['seg_map_path']).write_bytes(b'no image')
        with pytest.raises(ValueError, match=r'labels\.png: cannot be decoded'):
            LoadLabelMap()(entry)
        Path(entry['seg_map_path']).unlink()
        with pytest.raises(FileNotFoundError, match=r'labels\.png'):
            LoadLabelMap()(entry)

    @pytest.mark.parametrize('key', ['num_classes', 'zero_label', 'ori_shape'])
    def test_items_of_other_data_sets_are_refused(self, item, key):
        entry = item(all_labels(847, 65535))
        del entry[key]
        with pytest.raises(KeyError, match=rf"labels.png: the item has no \['{key}'\]; .*OVSegDataset"):
            LoadLabelMap()(entry)

    def test_an_item_without_a_label_map_is_left_as_it_is(self):
        assert LoadLabelMap()({'img_path': 'a.jpg', 'ori_shape': SHAPE}) == {'img_path': 'a.jpg', 'ori_shape': SHAPE}


class TestLabels:
    @given(arrays.arrays(np.uint8, (3, 4)), st.booleans())
    def test_are_mmsegs_with_255_ignored(self, values, reduce_zero_label):
        zero_label = 'ignore' if reduce_zero_label else 'keep'
        known = 254 if reduce_zero_label else 255
        found = to_labels(values, num_classes=known, ignore_index=255, zero_label=zero_label)
        np.testing.assert_array_equal(found, load_with_mmseg(values, reduce_zero_label))

    @given(
        arrays.arrays(np.int64, (3, 4), elements=st.integers(0, 500)),
        st.sampled_from(['keep', 'ignore', 'last']),
        st.sampled_from([-1, 501, 65535]),
    )
    def test_follow_the_rule_pixel_by_pixel(self, values, zero_label, ignore_index):
        values[0, 0] = max(ignore_index, 0)
        num_classes = {'keep': 501, 'ignore': 500, 'last': 501}[zero_label]
        found = to_labels(values, num_classes=num_classes, ignore_index=ignore_index, zero_label=zero_label)
        for value, label in zip(values.ravel().tolist(), found.ravel().tolist(), strict=True):
            assert label == expected_label(value, zero_label, ignore_index, num_classes)


def expected_label(value: int, zero_label: str, ignore_index: int, num_classes: int) -> int:
    if value == ignore_index:
        return ignore_index
    if zero_label == 'keep':
        return value
    if value == 0:
        return ignore_index if zero_label == 'ignore' else num_classes - 1
    return value - 1


def load_with_mmseg(values: np.ndarray, reduce_zero_label: bool) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, 'png')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('mmengine.fileio.get', lambda path, backend_args=None: stream.getvalue())
        results = {'seg_map_path': '', 'reduce_zero_label': reduce_zero_label, 'seg_fields': []}
        MMSegLoadAnnotations().transform(results)
    return results['gt_seg_map']


class TestPipeline:
    def test_of_training_keeps_labels_above_255(self, item):
        values = all_labels(847, 65535)
        entry = item(values)
        pipeline = Compose(
            [
                LoadImageFromFile(),
                LoadLabelMap(),
                Resize(scale=(32, 24), keep_ratio=True),
                RandomCrop(crop_size=(20, 20), cat_max_ratio=0.75, ignore_index=65535),
                RandomRotate(prob=1.0, degree=20, seg_pad_val=65535),
                RandomFlip(prob=1.0),
                PackSegInputs(),
            ]
        )
        packed = pipeline({**entry, 'seg_fields': []})
        labels = packed['data_samples'].gt_sem_seg.data
        assert labels.dtype == torch.int64 and labels.shape == (1, 20, 20)
        assert set(labels.unique().tolist()) <= set(values.ravel().tolist()) and labels[labels < 65535].max() > 255
        preprocessor = SegDataPreProcessor(mean=[0] * 3, std=[1] * 3, size=(24, 24), seg_pad_val=65535)
        batch = preprocessor({'inputs': [packed['inputs']], 'data_samples': [packed['data_samples']]}, training=True)
        padded = batch['data_samples'][0].gt_sem_seg.data
        assert padded.shape == (1, 24, 24) and (padded[:, 20:] == 65535).all()

    def test_of_test_keeps_the_original_size(self, item):
        values = all_labels(847, 65535)
        pipeline = [LoadImageFromFile(), Resize(scale=(32, 24)), TRANSFORMS.build({'type': 'densevlm_mm.LoadLabelMap'})]
        packed = Compose([*pipeline, PackSegInputs()])({**item(values), 'seg_fields': []})
        assert packed['inputs'].shape == (3, 24, 32)
        np.testing.assert_array_equal(packed['data_samples'].gt_sem_seg.data[0], values)
