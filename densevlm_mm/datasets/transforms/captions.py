"""Captions of COCO's format, for contrastive pre-training and for retrieval."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from mmcv.transforms import BaseTransform
from mmengine import fileio

from densevlm_mm.registry import TRANSFORMS

from .pack import PackRegions


def group_captions(annotations: Mapping[str, Any], where: str) -> dict[int, list[str]]:
    """Captions of each image id, in the order of the file.

    Args:
        annotations: Content of a COCO-style file, whose ``annotations`` have ``image_id`` and ``caption``.
        where: The file's name, for the error.

    Raises:
        ValueError: It holds no captions.
    """
    captions = defaultdict(list)
    try:
        for annotation in annotations['annotations']:
            captions[annotation['image_id']].append(annotation['caption'])
    except (KeyError, TypeError) as error:
        raise ValueError(f'{where}: no COCO-style caption file ({error!r})') from error
    return dict(captions)


@TRANSFORMS.register_module()
class AddCaption(BaseTransform):
    """Add ``caption``, one of the image's captions: the epochs of an :class:`EpochSampler` take them in turn.

    Args:
        ann_file: COCO-style file whose ``annotations`` have ``image_id`` and ``caption``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It holds no captions.
    """

    def __init__(self, ann_file: str) -> None:
        if not fileio.isfile(ann_file):
            raise FileNotFoundError(f'{ann_file}: no such caption file')
        self.ann_file = ann_file
        try:
            annotations = json.loads(fileio.get_text(ann_file))
        except ValueError as error:
            raise ValueError(f'{ann_file}: no COCO-style caption file ({error!r})') from error
        self.captions = group_captions(annotations, ann_file)

    def transform(self, results: dict) -> dict:
        """Add the caption.

        Raises:
            ValueError: The image has none.
        """
        captions = self.captions.get(results['img_id'])
        if not captions:
            raise ValueError(f'{self.ann_file}: has no caption of image {results["img_id"]} ({results["img_path"]})')
        results['caption'] = captions[results.get('epoch', 0) % len(captions)]
        return results


@TRANSFORMS.register_module()
class PackCaptions(PackRegions):
    """:class:`PackRegions` of an item of a :class:`CaptionDataset`: the data sample also holds ``captions``, a list."""

    def transform(self, results: dict) -> dict:
        """Pack the item."""
        packed = super().transform(results)
        packed['data_samples'].captions = results['captions']
        return packed
