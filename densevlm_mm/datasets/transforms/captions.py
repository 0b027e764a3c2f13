"""Captions of COCO's format, for contrastive pre-training."""

from __future__ import annotations

import json
from collections import defaultdict

from mmcv.transforms import BaseTransform
from mmengine import fileio

from densevlm_mm.registry import TRANSFORMS


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
        self.captions: dict[int, list[str]] = defaultdict(list)
        try:
            for annotation in json.loads(fileio.get_text(ann_file))['annotations']:
                self.captions[annotation['image_id']].append(annotation['caption'])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f'{ann_file}: no COCO-style caption file ({error!r})') from error

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
