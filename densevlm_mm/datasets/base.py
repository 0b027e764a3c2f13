"""What the data sets share: items that know their epoch, bad images, and readable complaints about files."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import numpy as np
from mmengine import fileio
from mmengine.dataset import BaseDataset

from .image_file import BadImageError

# So many bad images in a row are no accident, even where every tenth is bad.
_MAX_REPLACEMENTS = 8


class EpochDataset(BaseDataset):
    """Data set whose items are asked for as ``index`` or, by :class:`EpochSampler`, as ``(epoch, index)``.

    The epoch travels with the index because workers that persist across epochs hold a copy of the data set
    and would not see an attribute change. Transforms find it as ``results['epoch']``.

    In training, which is where items have an epoch, a bad image does not end the run: another one takes its place,
    chosen from epoch and index alone, so that it is the same one for any number of workers and after a resume. The item
    says so in ``results['replaced']``, a tuple of ``(kind, path)``, which :class:`BadImageHook` counts, reports and
    limits. In evaluation a bad image is an error, for results must be complete; and so is a missing file anywhere, for
    that is a wrong path rather than a bad image.

    Args:
        args: See mmengine's ``BaseDataset``.
        bad_images: ``'replace'`` as described, or ``'error'`` also in training.
        options: See mmengine's ``BaseDataset``.

    Raises:
        ValueError: ``bad_images`` is another word.
    """

    #: Keys that ``data_prefix`` may have; any other one is taken for a typo.
    prefixes: ClassVar[tuple[str, ...]] = ('img_path',)

    def __init__(self, *args: Any, bad_images: str = 'replace', **options: Any) -> None:
        if bad_images not in ('replace', 'error'):
            raise ValueError(f"bad_images must be 'replace' or 'error', got {bad_images!r}")
        self.bad_images = bad_images
        super().__init__(*args, **options)

    def _copy_without_annotation(self, memo: dict[int, Any] | None = None) -> EpochDataset:
        # mmengine's default is one dict for all calls, in which whatever comes to lie where a data set lay is that one
        return super()._copy_without_annotation({} if memo is None else memo)

    def prepare_data(self, idx: int | tuple[int, int]) -> Any:
        """Run the pipeline on one item.

        Args:
            idx: Index, or ``(epoch, index)``.

        Returns:
            What the last transform returns.

        Raises:
            BadImageError: The image cannot be used, and is not to be replaced.
            RuntimeError: Neither can any of those that should have replaced it.
        """
        if not isinstance(idx, tuple):
            return self.pipeline(self.get_data_info(idx))
        epoch, index = idx
        replaced: list[tuple[str, str]] = []
        generator = np.random.default_rng((epoch, index))
        while len(replaced) <= _MAX_REPLACEMENTS:
            info = self.get_data_info(index) | {'epoch': epoch}
            if replaced:
                info['replaced'] = tuple(replaced)
            try:
                return self.pipeline(info)
            except BadImageError as error:
                if self.test_mode or self.bad_images == 'error':
                    raise
                replaced.append((error.kind, error.path))
                index = int(generator.integers(len(self)))
        raise RuntimeError(f'{len(replaced)} bad images in a row, {_listing(replaced)}; check the data set')

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

    def load_text(self) -> str:
        """Content of the annotation file.

        Raises:
            FileNotFoundError: There is no such file.
        """
        if not fileio.isfile(self.ann_file):
            raise FileNotFoundError(
                f'{self.ann_file}: no such annotation file; data_root={self.data_root!r} and ann_file must lead to it'
            )
        return fileio.get_text(self.ann_file)

    def load_lines(self) -> list[str]:
        """Lines of an annotation file that is a list; blank ones are left out.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It holds no line.
        """
        lines = [line.strip() for line in self.load_text().splitlines()]
        if not any(lines):
            raise ValueError(f'{self.ann_file}: is empty; a list with a path in each line is needed')
        return [line for line in lines if line]

    def load_json(self) -> dict:
        """Annotation file as a dict.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is not JSON, or not an object at its top level.
        """
        text = self.load_text()
        try:
            annotations = json.loads(text)
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


def _listing(replaced: list[tuple[str, str]]) -> str:
    return ', '.join(f'{path} ({kind})' for kind, path in replaced[:3])
