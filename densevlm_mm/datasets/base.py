"""What the data sets share: items that know their epoch, and readable complaints about files."""

from __future__ import annotations

import json
from typing import Any, ClassVar

from mmengine import fileio
from mmengine.dataset import BaseDataset


class EpochDataset(BaseDataset):
    """Data set whose items are asked for as ``index`` or, by :class:`EpochSampler`, as ``(epoch, index)``.

    The epoch travels with the index because workers that persist across epochs hold a copy of the data set
    and would not see an attribute change. Transforms find it as ``results['epoch']``.
    """

    #: Keys that ``data_prefix`` may have; any other one is taken for a typo.
    prefixes: ClassVar[tuple[str, ...]] = ('img_path',)

    def prepare_data(self, idx: int | tuple[int, int]) -> Any:
        """Run the pipeline on one item.

        Args:
            idx: Index, or ``(epoch, index)``.

        Returns:
            What the last transform returns.
        """
        epoch, index = idx if isinstance(idx, tuple) else (None, idx)
        info = self.get_data_info(index)
        if epoch is not None:
            info['epoch'] = epoch
        return self.pipeline(info)

    def folder(self, key: str) -> str:
        """Folder that ``data_prefix[key]`` names.

        Raises:
            FileNotFoundError: There is no such folder.
        """
        folder = self.data_prefix[key] or '.'
        if not fileio.isdir(folder):
            raise FileNotFoundError(
                f'{folder}: no such folder; data_root={self.data_root!r} and data_prefix[{key!r}] must lead to it'
            )
        return folder

    def load_json(self) -> dict:
        """Annotation file as a dict.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is not JSON, or not an object at its top level.
        """
        if not fileio.isfile(self.ann_file):
            raise FileNotFoundError(
                f'{self.ann_file}: no such annotation file; data_root={self.data_root!r} and ann_file must lead to it'
            )
        try:
            annotations = json.loads(fileio.get_text(self.ann_file))
        except ValueError as error:
            raise ValueError(f'{self.ann_file}: not a JSON file ({error}); write it again') from error
        if not isinstance(annotations, dict):
            raise ValueError(
                f'{self.ann_file}: a JSON object with the key "images" is expected, got a {type(annotations).__name__}'
            )
        return annotations

    def load_image_entries(self, annotations: dict) -> list[dict]:
        """Entries ``{'img_path', 'img_id'}`` of a COCO-style file's ``images``, in its order.

        Raises:
            ValueError: The file lists no images, or one without ``file_name`` or ``id``.
        """
        images = annotations.get('images')
        if not images:
            raise ValueError(f'{self.ann_file}: lists no "images"; a COCO-style file with some is needed')
        folder = self.folder('img_path')
        for number, image in enumerate(images):
            if missing := {'id', 'file_name'} - set(image):
                raise ValueError(f'{self.ann_file}: images[{number}] has no {sorted(missing)}')
        return [{'img_path': fileio.join_path(folder, image['file_name']), 'img_id': image['id']} for image in images]

    def _join_prefix(self) -> None:
        if unknown := sorted(set(self.data_prefix) - set(self.prefixes)):
            raise ValueError(
                f'{type(self).__name__}: data_prefix has unknown keys {unknown}; it takes {list(self.prefixes)}'
            )
        self.data_prefix = {key: self.data_prefix.get(key, '') for key in self.prefixes}
        super()._join_prefix()
