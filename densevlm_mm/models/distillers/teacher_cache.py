"""A frozen teacher's features, kept on disk: of every image, those of all boxes that a grid may ask for."""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import print_log
from mmengine.structures import BaseDataElement
from torch import Tensor

from densevlm_mm.datasets.grids import grid_boxes, grid_choices, normalize_boxes
from densevlm_mm.vlm import Vocabulary, load_class_embeddings
from densevlm_mm.vlm.architectures import resolve_arch
from densevlm_mm.vlm.checkpoints import save_atomically
from densevlm_mm.vlm.digest import sha256, state_digest
from densevlm_mm.vlm.factory import locate_checkpoint, pretrained_config, resolve_dtype
from densevlm_mm.vlm.prompts import fill_template, get_templates

from .feature_store import FeatureStore

# Raise it when the same weights come to give other features.
_FORMAT = 1


class TeacherCache:
    """Pooled features of a teacher, by input.

    An input is known by its fingerprint (see `PackRegions`), the teacher by a manifest of all that its features depend
    on: the content of its weights' file, its other options, the normalisation of pixels, autocast, the grids. Each
    manifest has a folder of its own, so that features of different teachers never mix.

    What is returned was rounded to half precision also where it has just been made: a run that stores features and one
    that finds them end with the same bits.

    Args:
        folder: Where the features are kept, of any number of teachers and data sets.
        teacher: Arguments of `load_vlm` for the teacher.
        pixels: How its images are normalised; anything that JSON can hold.
        state: The teacher's weights where they come from no file.
        min_split: Fewest rows and columns of a grid, as in `SampleGridRegions`.
        max_split: Most rows and columns.

    Raises:
        FileNotFoundError: The teacher's checkpoint does not exist.
        ValueError: The grids are impossible.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        teacher: Mapping[str, Any],
        pixels: Any,
        state: Mapping[str, Tensor] | None = None,
        min_split: int = 2,
        max_split: int = 6,
    ) -> None:
        self.folder = Path(folder)
        self.grids = grid_choices(min_split, max_split)
        self.width = resolve_arch(teacher['arch'])['embed_dim']
        self.teacher = _describe(teacher, self._weights_of(teacher) if state is None else state_digest(state))
        self.pixels = pixels
        self._stores: dict[torch.dtype | None, FeatureStore] = {}
        self._boxes_are_checked = False

    def features(
        self,
        inputs: Tensor,
        data_samples: Sequence[BaseDataElement],
        teacher: Callable[[Tensor, Tensor], Tensor],
    ) -> tuple[Tensor, float]:
        """Teacher's box features of a batch.

        Args:
            inputs: ``(B, 3, H, W)``, normalised; only those that are not stored are looked at.
            data_samples: ``gt_regions.boxes`` and the meta information ``fingerprint``, ``grid``, ``cells``,
                ``ori_shape``, ``img_shape`` and ``scale``.
            teacher: Makes features (M, N, C) of images (M, 3, H, W) and boxes (M, N, 4) in 0..1.

        Returns:
            ``(B, N, C)``, fp32, zero-padded, and the share of the images that were found.

        Raises:
            ValueError: The samples do not say what they show, or the teacher's features are not finite.
            OSError: Features cannot be stored.
        """
        wanted = [(self._digest(sample), self._section(sample)) for sample in data_samples]
        self._check_boxes(data_samples)
        store = self.store(inputs.device)
        found = [store.get(*key) for key in wanted]
        if any(rows is None for rows in found):
            store.refresh()
            found = [store.get(*key) if rows is None else rows for key, rows in zip(wanted, found, strict=True)]
        missed = sum(rows is None for rows in found)
        if missed:
            # by digest: an image may be in a batch twice
            absent = {digest: i for i, (digest, _) in enumerate(wanted) if found[i] is None}
            indices = list(absent.values())
            records = self._make(inputs[indices], [data_samples[i] for i in indices], teacher)
            store.add(list(absent), records)
            made = dict(zip(absent, records, strict=True))
            for i, (digest, section) in enumerate(wanted):
                found[i] = made[digest][store.layout.rows(section)] if found[i] is None else found[i]
        cells = [list(sample.cells) for sample in data_samples]
        shape = len(cells), max(map(len, cells)), self.width
        # from pinned memory, a copy to a GPU waits for nothing
        padded = torch.zeros(shape, dtype=torch.float16, pin_memory=inputs.is_cuda)
        for target, rows, chosen in zip(padded.numpy(), found, cells, strict=True):
            target[: len(chosen)] = rows[chosen]
        return padded.to(inputs.device, non_blocking=True).float(), 1 - missed / len(wanted)

    def class_embeddings(
        self, vocabulary: Vocabulary, templates: str | Sequence[str], make: Callable[[], Tensor]
    ) -> Tensor:
        """The teacher's embeddings ``(K, C)`` of classes: the stored ones, or those that `make` gives."""
        prompts: list[list[str]] = [[] for _ in vocabulary.names]
        for phrase, index in zip(*vocabulary.expanded(), strict=True):
            prompts[index] += [fill_template(template, phrase) for template in get_templates(templates)]
        path = self.folder / 'texts' / f'{_key([self.teacher, prompts])}.pt'
        with suppress(FileNotFoundError, ValueError):  # absent or damaged: they are made anew
            return load_class_embeddings(path, vocabulary.names, self.width)
        embeddings = make()
        content = {'embeddings': embeddings.cpu(), 'names': list(vocabulary.names)}
        self._keep(path, lambda file: torch.save(content, file))
        return embeddings

    def store(self, device: torch.device) -> FeatureStore:
        """Where features go that are made on a device under the present autocast."""
        enabled = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if enabled else None
        if dtype not in self._stores:
            self._stores[dtype] = self._open(str(dtype))
        return self._stores[dtype]

    def _open(self, autocast: str) -> FeatureStore:
        manifest = {'format': _FORMAT, 'teacher': self.teacher, 'pixels': self.pixels, 'autocast': autocast}
        manifest |= {'grids': self.grids, 'width': self.width}
        folder = self.folder / _key(manifest)
        if not (folder / 'manifest.json').exists():
            text = json.dumps(manifest, indent=2, default=str)
            save_atomically(folder / 'manifest.json', lambda file: file.write(text.encode()))
        store = FeatureStore(folder, sections=[rows * cols for rows, cols in self.grids], width=self.width)
        size = f'{store.layout.record_bytes:,} bytes each'
        print_log(f"teacher's features are kept in {folder}: those of {len(store):,} images, {size}", 'current')
        return store

    def _make(
        self, inputs: Tensor, samples: Sequence[BaseDataElement], teacher: Callable[[Tensor, Tensor], Tensor]
    ) -> np.ndarray:
        """Features ``(M, R, C)`` fp16 of all boxes that images (M, 3, H, W) may be asked for."""
        boxes = torch.stack([_boxes_of(sample, self.grids) for sample in samples])
        records = teacher(inputs, boxes.to(inputs.device)).half().cpu()
        for record, sample in zip(records, samples, strict=True):
            if not record.isfinite().all():
                raise ValueError(
                    f'{sample.get("img_path")}: the teacher gives features that are not finite, which are not stored; '
                    'run it in a wider dtype'
                )
        return records.numpy()

    def _digest(self, sample: BaseDataElement) -> bytes:
        if 'fingerprint' not in sample:
            raise ValueError(
                'teacher_cache: the samples have no fingerprint; end the pipeline of train_dataloader.dataset with '
                "dict(type='densevlm_mm.PackRegions', fingerprint=True)"
            )
        return bytes.fromhex(sample.fingerprint)

    def _section(self, sample: BaseDataElement) -> int:
        if 'grid' not in sample:
            raise ValueError(
                'teacher_cache: the samples do not say which grid their regions are; they must come from '
                "dict(type='densevlm_mm.SampleGridRegions') in the pipeline of train_dataloader.dataset"
            )
        if tuple(sample.grid) not in self.grids:
            splits = {split for grid in self.grids for split in grid}
            raise ValueError(
                f'teacher_cache: a grid of {sample.grid} was drawn, but rows and columns of {min(splits)} to '
                f'{max(splits)} are cached; give teacher_cache the min_split and max_split of SampleGridRegions'
            )
        return self.grids.index(tuple(sample.grid))

    def _check_boxes(self, samples: Sequence[BaseDataElement]) -> None:
        # once is enough to find a transform that moves boxes; each time, it would wait for the device
        if self._boxes_are_checked:
            return
        for sample in samples:
            boxes = _boxes_of(sample, [sample.grid])[list(sample.cells)]
            if not torch.equal(boxes, sample.gt_regions.boxes.cpu()):
                raise ValueError(
                    f'teacher_cache: the boxes of {sample.get("img_path")} are not those of its grid; take out the '
                    'transform that changes them after SampleGridRegions'
                )
        self._boxes_are_checked = True

    def _weights_of(self, teacher: Mapping[str, Any]) -> str:
        """SHA-256 of the teacher's file; kept, until size or time of the file change."""
        path = locate_checkpoint(teacher['arch'], teacher['checkpoint'])
        stat = os.stat(path)
        known = self.folder / 'weights' / _key([os.path.realpath(path), stat.st_size, stat.st_mtime_ns])
        if known.is_file() and re.fullmatch('[0-9a-f]{64}', digest := known.read_bytes().decode(errors='replace')):
            return digest
        digest = sha256(path)
        self._keep(known, lambda file: file.write(digest.encode()))
        return digest

    def _keep(self, path: Path, write: Callable) -> None:
        """Save what would only have to be made again."""
        try:
            save_atomically(path, write)
        except OSError as error:
            warnings.warn(f'{path} is not kept ({error.strerror})', stacklevel=3)


def _boxes_of(sample: BaseDataElement, grids: Sequence[tuple[int, int]]) -> Tensor:
    """Boxes ``(R, 4)``, xyxy in 0..1 of the input, of grids one after the other."""
    height, width = sample.ori_shape
    boxes = torch.cat([grid_boxes(width, height, rows, cols) for rows, cols in grids])
    return normalize_boxes(boxes, scale=sample.scale, size=sample.img_shape[0])


def _describe(config: Mapping[str, Any], weights: str) -> dict[str, Any]:
    """What a teacher's features depend on: its options, with the content of the weights in place of their file."""
    options = {k: v for k, v in config.items() if v not in (None, False) and k not in ('checkpoint', 'device')}
    tag = pretrained_config(config['arch'], config['checkpoint']) if config.get('checkpoint') else {}
    return options | {
        'arch': resolve_arch(config['arch']),
        'dtype': str(resolve_dtype(config.get('dtype'))),
        'weights': weights,
        'normalization': {key: tag[key] for key in ('mean', 'std') if key in tag},
    }


def _key(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:24]
