"""Label maps: from files of 8 or 16 bits to labels, for any number of classes."""

from __future__ import annotations

from typing import Literal

import numpy as np
from mmcv.transforms import BaseTransform

from densevlm_mm.datasets.transforms.image import read_image
from densevlm_mm.registry import TRANSFORMS

# Most classes that 8 bits hold beside a value for pixels that are ignored.
MAX_8_BIT = 255
_NEEDED = ('num_classes', 'ignore_index', 'zero_label', 'ori_shape')
# What 0 in a file may be, see `to_labels`.
ZERO_LABELS = ('keep', 'ignore', 'last')
_GUIDE = 'docs/segmentation_data.md says how to convert it'


@TRANSFORMS.register_module()
class LoadLabelMap(BaseTransform):
    """Load the label map of an :class:`OVSegDataset` item, in place of mmseg's ``LoadAnnotations``, which keeps 8 bits.

    Reads ``seg_map_path`` (PNG or TIFF of one channel; of a palette the indices count) and adds ``gt_seg_map``
    ``(H, W)`` int32, which ``PackSegInputs`` makes int64: OpenCV, which resizes it in between, does not keep int64.
    Labels are positions in the vocabulary, or the data set's ``ignore_index``; `to_labels` has the rules.

    Whatever pads or compares labels afterwards has an ignored value of its own, which is 255 unless told: see
    docs/segmentation_data.md for those to set.
    """

    def transform(self, results: dict) -> dict:
        """Load the label map; comes after the image is loaded, and before what crops or flips both.

        Items without ``seg_map_path``, such as those of MMSegmentation's inferencers, are left as they are.

        Raises:
            KeyError: The item lacks something, since it is of another data set or its image is not loaded.
            FileNotFoundError: There is no such file.
            ValueError: It is no label map, holds values that no class has, has 8 bits though there are more than 255
                classes, or is not of the size of its image; the message names the file and what to do.
        """
        path = results.get('seg_map_path')
        if path is None:
            return results
        missing = [key for key in _NEEDED if key not in results]
        if missing:
            raise KeyError(
                f'{path}: the item has no {missing}; LoadLabelMap is for densevlm_mm.OVSegDataset, after '
                'LoadImageFromFile'
            )
        values = read_label_map(path, num_classes=results['num_classes'])
        _check_size(values.shape, results)
        try:
            labels = to_labels(
                values,
                num_classes=results['num_classes'],
                ignore_index=results['ignore_index'],
                zero_label=results['zero_label'],
            )
        except ValueError as error:
            raise ValueError(f'{path}: {error}') from error
        results['gt_seg_map'] = labels
        results.setdefault('seg_fields', []).append('gt_seg_map')
        return results


def read_label_map(path: str, *, num_classes: int) -> np.ndarray:
    """Values ``(H, W)`` of a label map as they are stored.

    Args:
        path: File, or an address that mmengine's file clients know.
        num_classes: Number of classes that the file should be able to tell apart.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be decoded, has several channels, or has too few bits.
    """
    image = read_image(str(path))
    is_8_bit = image.mode in ('1', 'L', 'P')
    if not is_8_bit and not image.mode.startswith('I'):
        raise ValueError(f'{path}: is {image.mode}, but a label map has one channel of whole numbers; {_GUIDE}')
    if is_8_bit and num_classes > MAX_8_BIT:
        raise ValueError(
            f'{path}: has 8 bits, too few for {num_classes} classes: labels above {MAX_8_BIT} were cut when it was '
            f'written; {_GUIDE} to 16 bits'
        )
    return np.asarray(image)


def to_labels(
    values: np.ndarray,
    *,
    num_classes: int,
    ignore_index: int,
    zero_label: Literal['keep', 'ignore', 'last'] = 'keep',
) -> np.ndarray:
    """Labels of the values in a file.

    Args:
        values: ``(H, W)``, of any integer type, or bool.
        num_classes: K.
        ignore_index: Stands for pixels that do not count, in the file and in the result; no label of a class.
        zero_label: What 0 in the file is: 'keep', class 0; 'ignore', pixels that do not count, as with mmseg's
            ``reduce_zero_label``; 'last', class K-1. Unless it is kept, the file has 1 for class 0.

    Returns:
        ``(H, W)`` int32 of 0..K-1 and ``ignore_index``.

    Raises:
        ValueError: A value is none of these.
    """
    first, last = stored_range(num_classes, zero_label)
    ignored = values == ignore_index
    outside = ~ignored & ((values < 0) | (values > last))
    if outside.any():
        raise ValueError(
            f'holds the value {values[outside][0]}, but the {num_classes} classes are stored as {first}..{last} and '
            f"{ignore_index} is ignored; check the data set's vocabulary, ignore_index and zero_label, and how the "
            'file was converted (docs/segmentation_data.md)'
        )
    labels = values.astype(np.int32) - (zero_label != 'keep')
    labels[ignored] = ignore_index
    if zero_label != 'keep':
        labels[values == 0] = ignore_index if zero_label == 'ignore' else num_classes - 1
    return labels


def stored_range(num_classes: int, zero_label: str) -> tuple[int, int]:
    """Smallest and largest value that stands for a class in a file; see `to_labels`."""
    return int(zero_label == 'ignore'), num_classes - (zero_label != 'ignore')


def _check_size(shape: tuple[int, ...], results: dict) -> None:
    height, width = results['ori_shape'][:2]
    if shape != (height, width):
        remedy = 'both must be of the same release'
        if shape == (width, height):
            remedy = "if EXIF turned it, load it with LoadImageFromFile(color_type='color_ignore_orientation')"
        raise ValueError(
            f'{results["seg_map_path"]}: is {shape[1]}x{shape[0]} px, but its image {results.get("img_path")} is '
            f'{width}x{height} px; {remedy}'
        )
