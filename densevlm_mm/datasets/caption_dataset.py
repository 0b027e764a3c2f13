"""Images with all their captions, for retrieval."""

from __future__ import annotations

from densevlm_mm.registry import DATASETS

from .base import EpochDataset
from .transforms.captions import group_captions


@DATASETS.register_module()
class CaptionDataset(EpochDataset):
    """Images with the captions of a COCO-style JSON file.

    The arguments are those of mmengine's ``BaseDataset``, and ``max_captions``::

        dict(type='densevlm_mm.CaptionDataset', data_root='data/coco',
             ann_file='annotations/captions_val2017.json', data_prefix=dict(img_path='val2017'), pipeline=[...])

    Args:
        *args: See mmengine's ``BaseDataset``.
        max_captions: Captions kept per image, the first ones of the file. A few images of COCO have six or seven;
            retrieval is reported with five.
        **kwargs: See mmengine's ``BaseDataset``.

    Raises:
        ValueError: ``max_captions`` is not positive.
    """

    def __init__(self, *args, max_captions: int = 5, **kwargs) -> None:
        if max_captions < 1:
            raise ValueError(f'max_captions must be positive, got {max_captions}')
        self.max_captions = max_captions
        super().__init__(*args, **kwargs)

    def load_data_list(self) -> list[dict]:
        """Entries ``{'img_path', 'img_id', 'captions'}``, in the order of the file's ``images``.

        Raises:
            FileNotFoundError: The file or the folder is missing.
            ValueError: The file is no COCO-style caption file, or has an image without a caption.
        """
        annotations = self.load_json()
        captions = group_captions(annotations, self.ann_file)
        entries = self.load_image_entries(annotations)
        for entry in entries:
            if not captions.get(entry['img_id']):
                raise ValueError(
                    f'{self.ann_file}: has no caption of image {entry["img_id"]} ({entry["img_path"]}), which it lists'
                )
            entry['captions'] = captions[entry['img_id']][: self.max_captions]
        return entries
