"""Images without annotations: all that DenseVLM and CLIPSelf train on."""

from __future__ import annotations

import logging
from pathlib import PurePath
from typing import Any

from mmengine import fileio
from mmengine.logging import print_log

from densevlm_mm.registry import DATASETS

from .base import EpochDataset
from .image_file import IMAGE_SUFFIXES

# Share of listed images that a search may miss: annotation files of Objects365 list a few that no archive holds.
_MAX_ABSENT = 0.01


@DATASETS.register_module()
class ImageDataset(EpochDataset):
    """Images listed by a file, or found in a folder.

    Without ``ann_file``, every image file below ``data_prefix['img_path']``, at any depth, sorted by path. With a
    ``.txt`` file, one path per line, below that folder; with any other, the entries of ``images`` of COCO-style JSON,
    their ``file_name`` below that folder; both in the order of the file. Annotations are not read. Further arguments
    are those of :class:`EpochDataset`::

        dict(type='densevlm_mm.ImageDataset', data_root='data/coco',
             ann_file='annotations/instances_train2017.json', data_prefix=dict(img_path='train2017'),
             pipeline=[...])

    Args:
        find_by_name: Look listed images up by their base names, anywhere below the folder, whatever folders the list
            names. For data sets whose archives unpack to other folders than their annotation file says. Images that
            are not there are left out with a warning; more than 1 % of them are an error.
        options: See :class:`EpochDataset`.
    """

    def __init__(self, *args: Any, find_by_name: bool = False, **options: Any) -> None:
        self.find_by_name = find_by_name
        super().__init__(*args, **options)

    def load_data_list(self) -> list[dict]:
        """Entries ``{'img_path', 'img_id'}``; without JSON, the id is the path below the folder.

        Raises:
            FileNotFoundError: The file or the folder is missing, or the folder holds no image.
            ValueError: The file is no list of images, or ambiguous.
        """
        if not self.ann_file:
            return self._entries(self._names_in_folder())
        listed = self.ann_file.endswith('.txt')
        entries = self._entries(self.load_lines()) if listed else self.load_image_entries(self.load_json())
        return self._found(entries) if self.find_by_name else entries

    def _entries(self, names: list[str]) -> list[dict]:
        folder = self.folder('img_path')
        return [{'img_path': fileio.join_path(folder, name), 'img_id': name} for name in names]

    def _names_in_folder(self) -> list[str]:
        folder = self.folder('img_path')
        names = sorted(
            name
            for name in fileio.list_dir_or_file(folder, list_dir=False, recursive=True)
            if PurePath(name).suffix.lower() in IMAGE_SUFFIXES
        )
        if not names:
            raise FileNotFoundError(
                f'{folder}: no image in this folder or below it (looked for {", ".join(IMAGE_SUFFIXES)})'
            )
        return names

    def _found(self, entries: list[dict]) -> list[dict]:
        """Entries with the paths at which files of their names are."""
        paths = self._paths_by_name()
        names = [PurePath(entry['img_path']).name for entry in entries]
        found = [entry | {'img_path': paths[name]} for name, entry in zip(names, entries, strict=True) if name in paths]
        if absent := len(entries) - len(found):
            first = next(name for name in names if name not in paths)
            message = f'{self.ann_file}: {absent} of {len(entries)} images are not below {self.folder("img_path")}'
            if absent > _MAX_ABSENT * len(entries):
                raise FileNotFoundError(f'{message}, as {first}; unpack all archives there')
            print_log(f'{message}, as {first}; they are left out', logger='current', level=logging.WARNING)
        return found

    def _paths_by_name(self) -> dict[str, str]:
        paths: dict[str, str] = {}
        for entry in self._entries(self._names_in_folder()):
            path, name = entry['img_path'], PurePath(entry['img_path']).name
            if paths.setdefault(name, path) != path:
                raise ValueError(f'{path} and {paths[name]} have the same name; find_by_name needs distinct ones')
        return paths
