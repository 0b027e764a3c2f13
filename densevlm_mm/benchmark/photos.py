"""A generated data set, and how both candidates load it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from itertools import count, islice
from pathlib import Path
from typing import Any

import mmengine.dataset
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from densevlm_mm.datasets import ImageDataset

from .reference_like import CropGridDataset
from .synthetic import write_annotations, write_photos


class PhotoFolder:
    """JPEGs of COCO's size in a folder, and lists of them.

    Args:
        folder: Where to.
        images: How many.
        device: Where batches will go; from pinned memory, if that is a GPU.
    """

    def __init__(self, folder: Path, images: int, *, device: str = 'cpu') -> None:
        self.folder = folder
        self.pin_memory = torch.device(device).type == 'cuda'
        (folder / 'photos').mkdir()
        self.names = write_photos(folder / 'photos', images)

    @property
    def mean_bytes(self) -> float:
        """Mean size of the files."""
        return sum(os.path.getsize(path) for path in self.paths) / len(self.names)

    @property
    def paths(self) -> list[str]:
        """All files."""
        return [str(self.folder / 'photos' / name) for name in self.names]

    def dataset_config(
        self,
        image_size: int,
        *,
        entries: int | None = None,
        load: Mapping[str, Any] | None = None,
        fingerprint: bool = False,
    ) -> dict[str, Any]:
        """Arguments of this project's `ImageDataset`, whose annotation file is written.

        Args:
            image_size: Side of the padded input in px.
            entries: Entries of the annotation file; None makes one for each image.
            load: Options of `LoadResizedImage`.
            fingerprint: Option of `PackRegions`.
        """
        entries = len(self.names) if entries is None else entries
        write_annotations(self.folder / f'{entries}.json', self.names, entries)
        pipeline = [
            dict(type='densevlm_mm.LoadResizedImage', size=image_size, **(load or {})),
            dict(type='densevlm_mm.SampleGridRegions'),
            dict(type='densevlm_mm.PackRegions', fingerprint=fingerprint),
        ]
        data_root, prefix = str(self.folder), dict(img_path='photos')
        return dict(data_root=data_root, ann_file=f'{entries}.json', data_prefix=prefix, pipeline=pipeline)

    def reference_like(self, image_size: int) -> CropGridDataset:
        """The baseline's data set of the same images."""
        return CropGridDataset(self.paths, size=image_size)

    def batches(self, image_size: int, batch_size: int, *, fingerprint: bool = False) -> Iterator[dict]:
        """This project's batches, over and over, loaded when asked for."""
        dataset = ImageDataset(**self.dataset_config(image_size, fingerprint=fingerprint))
        return self._load(dataset, batch_size, mmengine.dataset.default_collate)

    def reference_like_batches(self, image_size: int, batch_size: int) -> Iterator[list[Tensor]]:
        """The baseline's, with the same images and boxes."""
        return self._load(self.reference_like(image_size), batch_size, default_collate)

    def _load(self, dataset: Dataset, batch_size: int, collate: Callable) -> Iterator[Any]:
        items = (divmod(number, len(self.names)) for number in count())  # (epoch, index), epoch after epoch
        batches = iter(lambda: list(islice(items, batch_size)), None)
        return iter(DataLoader(dataset, batch_sampler=batches, collate_fn=collate, pin_memory=self.pin_memory))
