"""Images without annotations: all that DenseVLM and CLIPSelf train on."""

from __future__ import annotations

from pathlib import PurePath

from mmengine import fileio

from densevlm_mm.registry import DATASETS

from .base import EpochDataset

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff')


@DATASETS.register_module()
class ImageDataset(EpochDataset):
    """Images listed by a COCO-style JSON file, or found in a folder.

    With ``ann_file``, the entries of its ``images`` in the order of the file, their ``file_name`` below
    ``data_prefix['img_path']``; annotations are not read. Without, every image file below that folder, at any
    depth, sorted by path. The arguments are those of mmengine's ``BaseDataset``::

        dict(type='densevlm_mm.ImageDataset', data_root='data/coco',
             ann_file='annotations/instances_train2017.json', data_prefix=dict(img_path='train2017'),
             pipeline=[...])
    """

    def load_data_list(self) -> list[dict]:
        """Entries ``{'img_path', 'img_id'}``; in a folder, the id is the path below it.

        Raises:
            FileNotFoundError: The file or the folder is missing, or the folder holds no image.
            ValueError: The file is not a COCO-style list of images.
        """
        if self.ann_file:
            return self.load_image_entries(self.load_json())
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
        return [{'img_path': fileio.join_path(folder, name), 'img_id': name} for name in names]
