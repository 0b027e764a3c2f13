"""MMSegmentation's data set with a vocabulary for its classes, and the benchmarks that are read so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from mmengine import fileio
from mmseg.datasets import (
    ADE20KDataset,
    BaseSegDataset,
    CityscapesDataset,
    COCOStuffDataset,
    PascalContextDataset,
    PascalVOCDataset,
)

from densevlm_mm.registry import DATASETS
from densevlm_mm.vlm import Vocabulary, build_vocabulary

from .label_maps import ZERO_LABELS, stored_range

_GUIDE = 'docs/segmentation_data.md says where everything goes'
# Options of mmseg's data sets, and what to give instead.
_REPLACED = {
    'metainfo': 'vocabulary=, and palette=',
    'reduce_zero_label': "zero_label='ignore' for True, 'keep' for False",
}


@DATASETS.register_module()
class OVSegDataset(BaseSegDataset):
    """Images and label maps whose labels are positions in a vocabulary; for `LoadLabelMap`.

    ``metainfo`` has the vocabulary's ``classes``, ``is_thing`` and, as far as it has any, ``base_classes`` and
    ``novel_classes``; and ``ignore_index``, for the metric.

    Args:
        ann_file: List of the images, a name without suffix per line; '' for all below ``img_path``.
        vocabulary: Anything that `build_vocabulary` takes; benchmarks have one of their own, which another of as many
            classes may replace.
        palette: RGB per class, 0..255. None: the benchmark's, or always the same random one.
        ignore_index: Label of pixels that do not count.
        zero_label: What 0 in the files is, 'keep', 'ignore' or 'last': see `to_labels`. MMSegmentation's
            ``reduce_zero_label=True`` is 'ignore'.
        options: See ``BaseSegDataset``; mind ``img_suffix`` and ``seg_map_suffix``.

    Raises:
        FileNotFoundError: If the list, the images or the label maps are not there.
        ValueError: If there is no vocabulary, it does not fit the benchmark or the palette, or ``ignore_index`` is a
            label; or for an unknown ``zero_label``, or mmseg's ``metainfo`` or ``reduce_zero_label``.
    """

    PRESET: ClassVar[dict[str, Any]] = {}
    NUM_CLASSES: ClassVar[int | None] = None

    def __init__(
        self,
        ann_file: str = '',
        *,
        vocabulary: Any = None,
        palette: Sequence[Sequence[int]] | None = None,
        ignore_index: int | None = None,
        zero_label: Literal['keep', 'ignore', 'last'] | None = None,
        **options: Any,
    ) -> None:
        for option in _REPLACED.keys() & options:
            raise ValueError(f'{type(self).__name__} takes no {option}=: give {_REPLACED[option]}')
        given = {'vocabulary': vocabulary, 'palette': palette, 'ignore_index': ignore_index, 'zero_label': zero_label}
        chosen = {key: value for key, value in given.items() if value is not None}
        options = {'ignore_index': 255, 'zero_label': 'keep', **self.PRESET, **chosen, **options}
        self.vocabulary = self._build_vocabulary(options.pop('vocabulary', None))
        self.zero_label = options.pop('zero_label')
        _check_labels(len(self.vocabulary), options['ignore_index'], self.zero_label)
        metainfo = _metainfo(self.vocabulary, options.pop('palette', None), options['ignore_index'])
        super().__init__(ann_file, metainfo=metainfo, reduce_zero_label=self.zero_label == 'ignore', **options)

    def load_data_list(self) -> list[dict]:
        """Entries of the images, with ``num_classes``, ``ignore_index`` and ``zero_label`` for `LoadLabelMap`.

        Raises:
            FileNotFoundError: If there are no images, or the first one or its label map is missing.
        """
        if self.ann_file and not fileio.exists(self.ann_file, backend_args=self.backend_args):
            raise FileNotFoundError(f'{self.ann_file}: there is no such list of images; {_GUIDE}')
        folder = self.data_prefix['img_path']
        try:
            entries = super().load_data_list()
        except FileNotFoundError as error:
            raise FileNotFoundError(f'{folder}: there is no such folder; {_GUIDE}') from error
        if not entries:
            raise FileNotFoundError(f'{self.ann_file or folder}: no image *{self.img_suffix} in there; {_GUIDE}')
        for key in ('img_path', 'seg_map_path'):
            path = entries[0].get(key)
            if path and not fileio.exists(path, backend_args=self.backend_args):
                raise FileNotFoundError(f'{path}: there is no such file, the first of {len(entries)}; {_GUIDE}')
        shared = {
            'num_classes': len(self.vocabulary),
            'ignore_index': self.ignore_index,
            'zero_label': self.zero_label,
        }
        return [{**entry, **shared} for entry in entries]

    def _build_vocabulary(self, config: Any) -> Vocabulary:
        if config is None:
            raise ValueError(f'{type(self).__name__} needs vocabulary=..., a name or a file; {_GUIDE}')
        vocabulary = build_vocabulary(config)
        if self.NUM_CLASSES not in (None, len(vocabulary)):
            raise ValueError(
                f'{type(self).__name__} has label maps of {self.NUM_CLASSES} classes, but the vocabulary has '
                f'{len(vocabulary)}; give one with the same classes in the same order'
            )
        return vocabulary


@DATASETS.register_module()
class VOC21SegDataset(OVSegDataset):
    """PASCAL VOC 2012: background and 20 things; its own files, of which 255, the outlines, is ignored."""

    PRESET: ClassVar = {'vocabulary': 'voc21', 'palette': PascalVOCDataset.METAINFO['palette']}
    NUM_CLASSES = 21


@DATASETS.register_module()
class VOC20SegDataset(OVSegDataset):
    """PASCAL VOC 2012 without background, which is ignored (PAS-20); the same files."""

    PRESET: ClassVar = {
        'vocabulary': 'voc20',
        'palette': PascalVOCDataset.METAINFO['palette'][1:],
        'zero_label': 'ignore',
    }
    NUM_CLASSES = 20


@DATASETS.register_module()
class VOC20bSegDataset(OVSegDataset):
    """PASCAL VOC 2012 with all else as class 20 (PAS-20b); the same files.

    The vocabulary's 21st class goes by the names of the other 39 classes of PASCAL Context, any of which may win: with
    the 20 things they are the protocol's 59 queries, of which those from the 20th on count as one.
    """

    PRESET: ClassVar = {
        'vocabulary': 'voc20b',
        'palette': [*PascalVOCDataset.METAINFO['palette'][1:], PascalVOCDataset.METAINFO['palette'][0]],
        'zero_label': 'last',
    }
    NUM_CLASSES = 21


@DATASETS.register_module()
class Context60SegDataset(OVSegDataset):
    """PASCAL Context: 59 classes and, as 0, everything else."""

    PRESET: ClassVar = {'vocabulary': 'pascal_context60', 'palette': PascalContextDataset.METAINFO['palette']}
    NUM_CLASSES = 60


@DATASETS.register_module()
class Context59SegDataset(OVSegDataset):
    """PASCAL Context, everything but the 59 classes ignored; the same files."""

    PRESET: ClassVar = {
        'vocabulary': 'pascal_context59',
        'palette': PascalContextDataset.METAINFO['palette'][1:],
        'zero_label': 'ignore',
    }
    NUM_CLASSES = 59


@DATASETS.register_module()
class Context459SegDataset(OVSegDataset):
    """PASCAL Context with all its 459 classes: 16 bits, 65535 is ignored; the converter writes the vocabulary."""

    PRESET: ClassVar = {'ignore_index': 65535}
    NUM_CLASSES = 459


@DATASETS.register_module()
class COCOObjectSegDataset(OVSegDataset):
    """COCO's 80 things and, as 0, everything else; of converted files."""

    PRESET: ClassVar = {'vocabulary': 'coco_object', 'seg_map_suffix': '_instanceTrainIds.png'}
    NUM_CLASSES = 81


@DATASETS.register_module()
class COCOStuffSegDataset(OVSegDataset):
    """COCO-Stuff 164k with its 171 classes; of converted files."""

    PRESET: ClassVar = {
        'vocabulary': 'coco_stuff',
        'palette': COCOStuffDataset.METAINFO['palette'],
        'seg_map_suffix': '_labelTrainIds.png',
    }
    NUM_CLASSES = 171


@DATASETS.register_module()
class ADE150SegDataset(OVSegDataset):
    """ADE20K of the scene-parsing challenge: 150 classes; its own files, of which 0 is ignored."""

    PRESET: ClassVar = {
        'vocabulary': 'ade20k',
        'palette': ADE20KDataset.METAINFO['palette'],
        'zero_label': 'ignore',
    }
    NUM_CLASSES = 150


@DATASETS.register_module()
class ADE847SegDataset(OVSegDataset):
    """ADE20K with 847 classes: 16 bits, 65535 is ignored; the converter writes the vocabulary."""

    PRESET: ClassVar = {'ignore_index': 65535}
    NUM_CLASSES = 847


@DATASETS.register_module()
class CityscapesSegDataset(OVSegDataset):
    """Cityscapes with 19 classes; of files converted by mmseg's or Cityscapes' own scripts."""

    PRESET: ClassVar = {
        'vocabulary': 'cityscapes',
        'palette': CityscapesDataset.METAINFO['palette'],
        'img_suffix': '_leftImg8bit.png',
        'seg_map_suffix': '_gtFine_labelTrainIds.png',
    }
    NUM_CLASSES = 19


def _check_labels(num_classes: int, ignore_index: int, zero_label: str) -> None:
    if zero_label not in ZERO_LABELS:
        raise ValueError(f'zero_label must be one of {ZERO_LABELS}, got {zero_label!r}')
    last = stored_range(num_classes, zero_label)[1]
    if 0 <= ignore_index <= last:
        raise ValueError(
            f'ignore_index {ignore_index} is a label, for the label maps hold 0..{last}; set another, such as '
            f'{255 if last < 255 else 65535}'
        )


def _metainfo(vocabulary: Vocabulary, palette: Sequence[Sequence[int]] | None, ignore_index: int) -> dict[str, Any]:
    if palette is not None and len(palette) != len(vocabulary):
        raise ValueError(f'the palette has {len(palette)} colours for {len(vocabulary)} classes')
    parts = {
        f'{part}_classes': tuple(n for n, p in zip(vocabulary.names, vocabulary.split, strict=True) if p == part)
        for part in ('base', 'novel')
    }
    metainfo = {'classes': vocabulary.names, 'is_thing': vocabulary.is_thing, 'ignore_index': ignore_index, **parts}
    if palette is not None:
        metainfo['palette'] = [list(colour) for colour in palette]
    return {key: value for key, value in metainfo.items() if value != ()}
