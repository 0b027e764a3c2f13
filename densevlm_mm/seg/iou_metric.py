"""Intersection over union by both conventions in use, for any number of classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger
from torch import Tensor

from densevlm_mm.evaluation.report import format_table, output_path, write_json
from densevlm_mm.registry import METRICS
from densevlm_mm.vlm.vocabulary import first_difference

CONVENTIONS = {
    'mIoU': "mean over the classes that are in the ground truth or predicted (MMSegmentation's; detectron2's until "
    'July 2022)',
    'mIoU_gt': "mean over the classes that are in the ground truth (detectron2's since July 2022)",
}
# Rows of the totals, and keys of what is counted of an image.
COUNTS = ('intersection', 'predicted', 'truth')
MMSEG_IGNORE_INDEX = 255

ImageResult = dict[str, list[int]]


@METRICS.register_module()
class OVIoUMetric(BaseMetric):
    """Segmentation by intersection over union, in percent.

    Returns ``mIoU`` and ``mIoU_gt``, which ``CONVENTIONS`` tell apart; ``mAcc``, the mean over the classes in the
    ground truth of the share of their pixels that was found; and ``aAcc``, the share of all pixels. Where the metainfo
    of the data set has ``is_thing``, ``base_classes`` or ``novel_classes``, also ``thing.mIoU``, ``stuff.mIoU_gt``,
    ``novel.mAcc`` and so on: means over those classes, of one evaluation with all classes. A figure over no class has
    no key, and a dash in the table. The figures are not rounded; ``mIoU``, ``mAcc`` and ``aAcc`` are those of mmseg's
    ``IoUMetric``, which cannot tell more than 255 classes of 8-bit label maps, adds up in fp32 and drops labels that
    no class has: an error here.

    ``results`` has an entry per image: lists of integers, of those classes alone that occur, see `count_image`. It is
    small, and mmengine can drop the images that a distributed sampler repeats. Since it is also plain JSON, a run can
    be resumed: store ``results[-1]`` under the name of the image after each image, process only those that are not
    stored yet, and give all of them to `compute_metrics`, in any order. The figures are the same to the last digit, for
    whole numbers are added.

    Args:
        ignore_index: Label of pixels that do not count. None: the ``ignore_index`` of the metainfo, which an
            :class:`OVSegDataset` has, else 255.
        per_class: Also show the figures of each class; the file has them in any case.
        out_json: Where to write the figures; replaced by every evaluation. ``None`` puts ``iou.json``, or
            ``<prefix>_iou.json``, beside the log file of the run, or nowhere if there is none.
        collect_device: How results travel between processes, 'cpu' or 'gpu'.
        collect_dir: Shared folder for 'cpu'; ``None`` makes a temporary one.
        prefix: Put before every key, with a slash.
    """

    # Keys are complete as they are; without this, mmengine warns that there is no prefix.
    default_prefix = ''

    def __init__(
        self,
        *,
        ignore_index: int | None = None,
        per_class: bool = False,
        out_json: str | None = None,
        collect_device: str = 'cpu',
        collect_dir: str | None = None,
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, collect_dir=collect_dir, prefix=prefix)
        self._ignore_index = ignore_index
        self.per_class = per_class
        self.out_json = out_json

    @BaseMetric.dataset_meta.setter
    def dataset_meta(self, meta: dict) -> None:
        """The data set's metainfo.

        Raises:
            ValueError: It names no classes, or ``ignore_index`` is one of their labels.
        """
        if not (meta or {}).get('classes'):
            raise ValueError(f"{type(self).__name__} needs a data set whose metainfo has 'classes'")
        self._dataset_meta = meta
        if 0 <= self.ignore_index < len(meta['classes']):
            raise ValueError(
                f'ignore_index {self.ignore_index} is the label of {meta["classes"][self.ignore_index]!r}; give the '
                "metric and the data set one that is no label, such as 65535, or leave the metric's to the data set"
            )

    @property
    def ignore_index(self) -> int:
        """Label of pixels that do not count."""
        chosen = self._ignore_index
        return (self.dataset_meta or {}).get('ignore_index', MMSEG_IGNORE_INDEX) if chosen is None else chosen

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Count the pixels of a batch of data samples with ``gt_sem_seg`` and ``pred_sem_seg``.

        Labels of a sample with ``vocabulary``, which this package's segmentors set, are positions in it.

        Raises:
            KeyError: A data sample lacks one of the two.
            ValueError: They differ in size, or hold a label that no class has; or the sample's vocabulary is not the
                classes of the data set; the message names the image. Or the metric has not been told the data set's
                metainfo.
        """
        if self.dataset_meta is None:
            raise ValueError(f"{type(self).__name__}.dataset_meta was not set; it needs the data set's metainfo")
        for sample in data_samples:
            where = sample.get('img_path', 'a data sample')
            try:
                _check_vocabulary(sample.get('vocabulary'), self.dataset_meta['classes'])
                maps = [sample[key]['data'].squeeze(0) for key in ('pred_sem_seg', 'gt_sem_seg')]
                counts = count_image(
                    *maps, num_classes=len(self.dataset_meta['classes']), ignore_index=self.ignore_index
                )
            except KeyError as error:
                raise KeyError(f'{where}: no {error}; a prediction and a loaded label map are needed') from error
            except ValueError as error:
                raise ValueError(f'{where}: {error}') from error
            self.results.append(counts)

    def compute_metrics(self, results: Sequence[ImageResult]) -> dict[str, float]:
        """Figures over all images; also logs the tables and writes the file.

        Args:
            results: One entry of `count_image` per image, in any order.
        """
        totals = sum_images(results, num_classes=len(self.dataset_meta['classes']))
        groups = self._groups()
        figures = {name: group_figures(totals, labels) for name, labels in groups.items()}
        summary = self._summary(figures, totals, groups, images=len(results))
        tables = [group_table(summary['groups'])]
        if self.per_class:
            tables.append(class_table(summary['per_class']))
        explained = '\n'.join(f'{name}: {text}' for name, text in CONVENTIONS.items())
        MMLogger.get_current_instance().info(
            f'Segmentation of {len(results)} images, in %\n{explained}\n' + '\n\n'.join(tables)
        )
        if path := output_path(self.out_json, f'{self.prefix}_iou.json' if self.prefix else 'iou.json'):
            write_json(path, summary)
        return summary['metrics']

    def _groups(self) -> dict[str, list[int]]:
        """Labels of the groups that have figures; those of one kind only where there are others, too."""
        meta, everything = self.dataset_meta, range(len(self.dataset_meta['classes']))
        flags = meta.get('is_thing') or [True] * len(everything)
        groups = {
            'thing': [label for label in everything if flags[label]],
            'stuff': [label for label in everything if not flags[label]],
        }
        for part in ('base', 'novel'):
            names = set(meta.get(f'{part}_classes', ()))
            groups[part] = [label for label in everything if meta['classes'][label] in names]
        return {
            'all': list(everything),
            **{name: labels for name, labels in groups.items() if 0 < len(labels) < len(everything)},
        }

    def _summary(
        self,
        figures: Mapping[str, Mapping[str, float | None]],
        totals: np.ndarray,
        groups: Mapping[str, Sequence[int]],
        *,
        images: int,
    ) -> dict[str, Any]:
        """What goes into the file."""
        present, involved = totals[2] > 0, totals[1:].any(axis=0)
        counts = {
            name: {
                'classes': len(labels),
                'in_gt': int(present[labels].sum()),
                'in_gt_or_predicted': int(involved[labels].sum()),
            }
            for name, labels in groups.items()
        }
        metrics = {
            name if group == 'all' else f'{group}.{name}': value
            for group, of_group in figures.items()
            for name, value in of_group.items()
            if value is not None
        }
        return {
            'metrics': metrics,
            'conventions': CONVENTIONS,
            'images': images,
            'ignore_index': self.ignore_index,
            'groups': {name: {**figures[name], **counts[name]} for name in groups},
            'per_class': class_figures(totals, self.dataset_meta['classes']),
        }


def count_image(predicted: Tensor, truth: Tensor, *, num_classes: int, ignore_index: int) -> ImageResult:
    """Pixels of one image, for those classes alone that occur.

    Args:
        predicted: ``(H, W)`` labels 0..K-1, of any integer type.
        truth: ``(H, W)`` labels 0..K-1 and ``ignore_index``.
        num_classes: K.
        ignore_index: Label of pixels that do not count.

    Returns:
        ``labels``, rising, and for each of them the pixels in the ``intersection``, ``predicted`` and in the ``truth``.

    Raises:
        ValueError: They differ in size, or hold other labels.
    """
    if predicted.shape != truth.shape or predicted.ndim != 2:
        raise ValueError(
            f'the prediction is {_size(predicted)} px, but the label map is {_size(truth)} px; predict at the original '
            'size, and load the label map after the image is resized, so that it is not'
        )
    counted = truth != ignore_index
    predicted, truth = predicted[counted].long(), truth.to(predicted.device)[counted].long()
    _check_labels('prediction', predicted, num_classes, "the model's vocabulary")
    _check_labels('label map', truth, num_classes, 'ignore_index and the conversion')
    rows = torch.stack(
        [torch.bincount(labels, minlength=num_classes) for labels in (truth[predicted == truth], predicted, truth)]
    )
    labels = rows.any(dim=0).nonzero().flatten()
    counts = zip(COUNTS, rows[:, labels].tolist(), strict=True)
    return {'labels': labels.tolist(), **dict(counts)}


def sum_images(results: Sequence[ImageResult], *, num_classes: int) -> np.ndarray:
    """Pixels of all images, ``(3, K)`` int64, in the rows ``COUNTS``."""
    totals = np.zeros((len(COUNTS), num_classes), np.int64)
    for entry in results:
        totals[:, entry['labels']] += np.array([entry[key] for key in COUNTS], np.int64)
    return totals


def group_figures(totals: np.ndarray, labels: Sequence[int]) -> dict[str, float | None]:
    """Figures in percent over some classes, from what `sum_images` returns; None for a mean over no class."""
    intersection, predicted, truth = totals[:, labels]
    union = predicted + truth - intersection
    present, involved = truth > 0, union > 0
    iou = intersection / np.maximum(union, 1)
    return {
        'mIoU': _percent(iou[involved]),
        'mIoU_gt': _percent(iou[present]),
        'mAcc': _percent(intersection[present] / truth[present]),
        'aAcc': 100 * int(intersection.sum()) / int(truth.sum()) if present.any() else None,
    }


def class_figures(totals: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """One entry for each class, in the order of the labels, with its figures in percent and its pixels."""
    entries = []
    for label, name in enumerate(names):
        figures = group_figures(totals, [label])
        pixels = dict(zip(COUNTS, totals[:, label].tolist(), strict=True))
        entries.append({'label': label, 'name': name, 'iou': figures['mIoU'], 'acc': figures['mAcc'], **pixels})
    return entries


def group_table(groups: Mapping[str, Mapping[str, Any]]) -> str:
    """Table of the groups, from the ``groups`` of the file."""
    columns = {'in_gt': 'in GT', 'in_gt_or_predicted': 'in GT or predicted'}
    keys = [*next(iter(groups.values()))]
    rows = [[name, *(entry[key] for key in keys)] for name, entry in groups.items()]
    return format_table(['group', *(columns.get(key, key) for key in keys)], rows)


def class_table(entries: Sequence[Mapping[str, Any]]) -> str:
    """Table of the classes, from the ``per_class`` entries of the file."""
    rows = [[entry['name'], entry['iou'], entry['acc'], entry['truth'], entry['predicted']] for entry in entries]
    return format_table(['class', 'IoU', 'Acc', 'pixels in GT', 'predicted'], rows)


def _percent(shares: np.ndarray) -> float | None:
    return 100 * float(shares.mean()) if shares.size else None


def _size(labels: Tensor) -> str:
    return 'x'.join(map(str, reversed(labels.shape)))


def _check_vocabulary(names: Sequence[str] | None, classes: Sequence[str]) -> None:
    difference = None if names is None else first_difference(names, classes)
    if difference:
        raise ValueError(
            f"the prediction's labels are positions in another vocabulary than the data set's classes: {difference}; "
            'give model and data set the same vocabulary'
        )


def _check_labels(what: str, labels: Tensor, num_classes: int, check: str) -> None:
    outside = labels[(labels < 0) | (labels >= num_classes)]
    if outside.numel():
        raise ValueError(
            f'the {what} holds label {outside[0].item()}, which is none of the {num_classes} classes of the data set; '
            f'check {check}'
        )
