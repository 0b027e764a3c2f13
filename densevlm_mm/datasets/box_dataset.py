"""Images with boxes: class-agnostic proposals (CLIPSelf) or boxes with a guessed noun each (RegionCLIP)."""

from __future__ import annotations

import json
from collections import defaultdict

import numpy as np
from mmengine import fileio

from densevlm_mm.registry import DATASETS

from .base import EpochDataset


@DATASETS.register_module()
class BoxDataset(EpochDataset):
    """Images of a COCO-style instance file that have boxes, with those boxes in the order of the file.

    Categories are optional. Where there are any, a label is the rank of the category id among the sorted ids, and
    ``metainfo['classes']`` holds the names in that order. The arguments are those of mmengine's ``BaseDataset``::

        dict(type='densevlm_mm.BoxDataset', data_root='data/coco',
             ann_file='annotations/coco_proposals.json', data_prefix=dict(img_path='train2017'),
             pipeline=[...])

    An item has ``img_path``, ``img_id``, ``ann_boxes`` ``(N, 4)`` float32 xyxy in px and, with categories,
    ``ann_labels`` ``(N,)`` int64.
    """

    def load_data_list(self) -> list[dict]:
        """Entries of the images that have boxes.

        Raises:
            FileNotFoundError: The file or the folder of images is missing.
            ValueError: The file holds no images or boxes, or contradicts itself.
        """
        content = self.load_json()
        labels = None
        if content.get('categories'):
            ids, self._metainfo['classes'] = sorted_categories(content['categories'], self.ann_file)
            labels = {category_id: label for label, category_id in enumerate(ids)}
        entries = {entry['img_id']: entry for entry in self.load_image_entries(content)}
        boxes, ranks = self._group_by_image(content.get('annotations') or [], set(entries), labels)
        for image_id, entry in entries.items():
            entry['ann_boxes'] = np.array(boxes[image_id], np.float32).reshape(-1, 4)
            if labels is not None:
                entry['ann_labels'] = np.array(ranks[image_id], np.int64)
        return [entry for entry in entries.values() if len(entry['ann_boxes'])]

    def _group_by_image(
        self, annotations: list[dict], known: set, labels: dict[int, int] | None
    ) -> tuple[dict[int, list], dict[int, list]]:
        """Boxes xyxy and labels of each image id."""
        if not annotations:
            raise ValueError(f'{self.ann_file}: has no "annotations"; nothing could be learnt from it')
        boxes, ranks = defaultdict(list), defaultdict(list)
        for number, annotation in enumerate(annotations):
            where = f'{self.ann_file}: annotations[{number}]'
            needed = {'image_id', 'bbox'} if labels is None else {'image_id', 'bbox', 'category_id'}
            if missing := needed - set(annotation):
                raise ValueError(f'{where} has no {sorted(missing)}; a COCO-style instance file is needed')
            if len(annotation['bbox']) != 4:
                raise ValueError(f'{where} needs a "bbox" of four numbers, got {annotation["bbox"]}')
            if annotation['image_id'] not in known:
                raise ValueError(f'{where} is of image {annotation["image_id"]}, which "images" does not list')
            if labels is not None and annotation['category_id'] not in labels:
                raise ValueError(f'{where} has category {annotation["category_id"]}, which "categories" does not list')
            x, y, width, height = annotation['bbox']
            boxes[annotation['image_id']].append((x, y, x + width, y + height))
            if labels is not None:
                ranks[annotation['image_id']].append(labels[annotation['category_id']])
        return boxes, ranks


def sorted_categories(categories: list[dict], where: str) -> tuple[list[int], tuple[str, ...]]:
    """Ids and names of COCO-style categories, by ascending id.

    Raises:
        ValueError: A category has no id or name, or an id occurs twice; the message begins with ``where``.
    """
    if any(not {'id', 'name'} <= set(category) for category in categories):
        raise ValueError(f'{where}: a category has no "id" or "name"; a COCO-style instance file is needed')
    categories = sorted(categories, key=lambda category: category['id'])
    ids = [category['id'] for category in categories]
    if len(set(ids)) < len(ids):
        raise ValueError(f'{where}: "categories" repeats an id')
    return ids, tuple(category['name'] for category in categories)


def read_category_names(path: str) -> tuple[str, ...]:
    """Names of the categories of a COCO-style file, by ascending id: what the labels of a `BoxDataset` stand for.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not JSON, or has no categories.
    """
    if not fileio.isfile(path):
        raise FileNotFoundError(f'{path}: no such annotation file')
    try:
        categories = json.loads(fileio.get_text(path)).get('categories')
    except (ValueError, AttributeError) as error:
        raise ValueError(f'{path}: not a COCO-style JSON file ({error}); write it again') from error
    if not categories:
        raise ValueError(f'{path}: has no "categories"; a file with labelled boxes is needed')
    return sorted_categories(categories, path)[1]
