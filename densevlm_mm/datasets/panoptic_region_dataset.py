"""Labelled regions from panoptic annotations: what DenseVLM is evaluated on (COCO, ADE20K)."""

from __future__ import annotations

from mmengine import fileio

from densevlm_mm.registry import DATASETS

from .base import EpochDataset


@DATASETS.register_module()
class PanopticRegionDataset(EpochDataset):
    """Images with the segments of a COCO-panoptic JSON file.

    Every image of the file is an item, also one without a segment. A label is the rank of the category id
    among the sorted ids; ``metainfo`` then holds ``classes`` (names) and ``is_thing`` (bools) in the order of
    the labels. Crowd segments are kept, as in the published evaluation. The arguments are those of mmengine's
    ``BaseDataset``::

        dict(type='densevlm_mm.PanopticRegionDataset', data_root='data/coco',
             ann_file='annotations/panoptic_val2017.json',
             data_prefix=dict(img_path='val2017', seg_map_path='annotations/panoptic_val2017'),
             pipeline=[...])

    The segments of an item are ``results['segments_info']``, a list of ``{'id', 'label', 'is_thing', 'bbox'
    (xywh in px)}``; :class:`LoadPanopticRegions` turns them into regions.
    """

    prefixes = ('img_path', 'seg_map_path')

    def load_data_list(self) -> list[dict]:
        """Entries ``{'img_path', 'img_id', 'seg_map_path', 'segments_info'}``.

        Raises:
            FileNotFoundError: A file or folder is missing.
            ValueError: The file holds no images, categories or segments, or contradicts itself.
        """
        annotations = self.load_json()
        entries = self.load_image_entries(annotations)
        labels = self._load_categories(annotations)
        segments = {entry['image_id']: entry for entry in self._panoptic_entries(annotations)}
        if unknown := set(segments) - {entry['img_id'] for entry in entries}:
            raise ValueError(
                f'{self.ann_file}: has annotations of images that it does not list, ids '
                f'{sorted(unknown)[:5]}; both must belong together'
            )
        folder = self.folder('seg_map_path')
        for entry in entries:
            annotation = segments.get(entry['img_id'], {'file_name': '', 'segments_info': []})
            entry['seg_map_path'] = fileio.join_path(folder, annotation['file_name'])
            entry['segments_info'] = [
                self._segment(info, annotation['file_name'], labels) for info in annotation['segments_info']
            ]
        return entries

    def _load_categories(self, annotations: dict) -> dict[int, int]:
        """Set the meta information; return the label of each category id."""
        categories = annotations.get('categories') or []
        if any(not {'id', 'name', 'isthing'} <= set(category) for category in categories):
            raise ValueError(
                f'{self.ann_file}: a category has no "id", "name" or "isthing"; '
                'is this an instance file? A COCO-panoptic file is needed'
            )
        categories = sorted(categories, key=lambda category: category['id'])
        ids = [category['id'] for category in categories]
        if not ids or len(set(ids)) < len(ids):
            raise ValueError(
                f'{self.ann_file}: "categories" is empty or repeats an id; '
                'a COCO-panoptic file with distinct categories is needed'
            )
        names = tuple(category['name'] for category in categories)
        if len(self._metainfo.setdefault('classes', names)) != len(names):
            raise ValueError(
                f'{self.ann_file}: has {len(names)} categories, '
                f'but metainfo names {len(self._metainfo["classes"])} classes'
            )
        self._metainfo['is_thing'] = tuple(bool(category['isthing']) for category in categories)
        return {category_id: label for label, category_id in enumerate(ids)}

    def _panoptic_entries(self, annotations: dict) -> list[dict]:
        entries = annotations.get('annotations') or []
        if any(not {'image_id', 'file_name', 'segments_info'} <= set(entry) for entry in entries):
            raise ValueError(
                f'{self.ann_file}: an annotation has no "image_id", "file_name" or '
                '"segments_info"; is this an instance file? A COCO-panoptic file is needed'
            )
        if not any(entry['segments_info'] for entry in entries):
            raise ValueError(f'{self.ann_file}: holds no segment; nothing could be evaluated with it')
        return entries

    def _segment(self, info: dict, file_name: str, labels: dict[int, int]) -> dict:
        """One segment with its label."""
        where = f'{self.ann_file}: a segment of {file_name}'
        if missing := {'id', 'category_id'} - set(info):
            raise ValueError(f'{where} has no {sorted(missing)}')
        if info['category_id'] not in labels:
            raise ValueError(
                f'{where} (id {info["id"]}) has category {info["category_id"]}, which "categories" does not list'
            )
        label = labels[info['category_id']]
        is_thing = self._metainfo['is_thing'][label]
        if is_thing and len(info.get('bbox') or ()) != 4:
            raise ValueError(f'{where} (id {info["id"]}) is a thing, and needs a "bbox" of four numbers')
        return {'id': info['id'], 'label': label, 'is_thing': is_thing, 'bbox': info.get('bbox')}
