"""Average precision of each class by COCO's evaluator: what the metrics of open-vocabulary detection share."""

from __future__ import annotations

import io
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from mmdet.datasets.api_wrappers import COCO, COCOeval
from mmdet.evaluation import CocoMetric
from mmengine.fileio import load
from mmengine.logging import MMLogger

from densevlm_mm.evaluation.report import format_table, output_path, write_json

KINDS = ('bbox', 'segm')


class ClassAPMetric(CocoMetric):
    """AP of groups of classes, such as base and novel ones; a base class.

    MMDetection's metric collects the detections, and pycocotools evaluates them class by class, since a group may ask
    for its own images or excuses. Figures are shares of 1, not percent, as everywhere in MMDetection; they are not
    rounded. A group of which no class has ground truth has the figure -1, which is COCO's way to say so.

    Args:
        ann_file: Annotation file in COCO's format.
        metric: 'bbox', 'segm' (needs masks), or both.
        per_class: Also show, and write, the figures of each class.
        out_json: Where to write the figures; replaced by every evaluation. ``None`` puts ``<prefix>_ap.json`` beside
            the log file of the run, or nowhere if there is none.
        outfile_prefix: Keep the detections, in COCO's result format, as ``<outfile_prefix>.bbox.json`` and
            ``.segm.json``.
        backend_args: How mmengine reads ``ann_file`` where it is no local path.
        collect_device: How results travel between processes, 'cpu' or 'gpu'.
        collect_dir: Folder that all processes see, by which they travel on the CPU; a temporary one by default.
        prefix: Put before every key, with a slash.

    Raises:
        ValueError: ``metric`` is neither, ``ann_file`` cannot be evaluated, or ``collect_dir`` is not for this device.
    """

    # Most detections of a class in an image that count.
    max_dets = 100

    def __init__(
        self,
        *,
        ann_file: str,
        metric: str | Sequence[str] = 'bbox',
        per_class: bool = False,
        out_json: str | None = None,
        outfile_prefix: str | None = None,
        backend_args: dict | None = None,
        collect_device: str = 'cpu',
        collect_dir: str | None = None,
        prefix: str | None = None,
    ) -> None:
        kinds = [metric] if isinstance(metric, str) else list(metric)
        if not kinds or not set(kinds) <= set(KINDS):
            raise ValueError(f"metric must be 'bbox', 'segm' or a list of them, got {metric!r}")
        super().__init__(
            ann_file=ann_file,
            metric=kinds,
            outfile_prefix=outfile_prefix,
            backend_args=backend_args,
            collect_device=collect_device,
            prefix=prefix,
        )
        if collect_dir is not None and collect_device != 'cpu':
            raise ValueError("collect_dir is only for collect_device='cpu'")
        self.collect_dir = collect_dir  # mmdet's metric does not take it
        self.ann_file = ann_file
        self.per_class = per_class
        self.out_json = out_json
        self.groups: dict[str, list[int]] = {}
        self._check_annotations()

    @abstractmethod
    def _group_labels(self, meta: dict) -> dict[str, list[int]]:
        """The groups of labels to evaluate; no label is in two."""

    @abstractmethod
    def _figures(self, precision: np.ndarray) -> dict[str, float]:
        """Figures by name from what `_precision` returns."""

    def _images(self, category: int) -> list[int]:
        """The images on which a category is evaluated."""
        return list(self._coco_api.imgs)

    def _counting(self, sample: dict) -> dict:
        """The data sample without the detections that do not count."""
        return sample

    def _excuse(self, matches: list[dict | None]) -> None:
        """Changes pycocotools' ``evalImgs`` before they are accumulated."""

    def _check_annotations(self) -> None:
        """What pycocotools would trip over: all processes find it here, at once."""
        for annotation in self._coco_api.anns.values():
            annotation.setdefault('iscrowd', 0)  # LVIS has no crowds, and no such key
            if 'segm' in self.metrics and 'segmentation' not in annotation:
                raise ValueError(
                    f"{self.ann_file}: annotation {annotation['id']} has no 'segmentation'; use metric='bbox'"
                )
        if 0 in self._coco_api.anns:
            raise ValueError(
                f'{self.ann_file}: an annotation has the id 0, a match with which pycocotools takes for none; '
                'number the annotations from 1'
            )

    @CocoMetric.dataset_meta.setter
    def dataset_meta(self, meta: dict) -> None:
        """The data set's metainfo, found wanting here rather than after an epoch and on one process only."""
        if not (meta or {}).get('classes'):
            raise ValueError(f"{type(self).__name__} needs a data set whose metainfo has 'classes'")
        self._dataset_meta = meta
        ids = {category['name']: number for number, category in self._coco_api.cats.items()}
        self.cat_ids = [ids.get(name) for name in meta['classes']]
        self.groups = self._group_labels(meta)

    @property
    def labels(self) -> list[int]:
        """All labels that are evaluated."""
        return sorted(label for group in self.groups.values() for label in group)

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keep what is needed of a batch of data samples.

        Raises:
            ValueError: The metric has not been told the data set's metainfo; or a data sample is of an image that the
                annotation file does not list, has a label that the data set has no class for, or lacks masks.
        """
        for sample in data_samples:
            self._check(sample)
        super().process(data_batch, [self._counting(sample) for sample in data_samples])

    def _check(self, sample: dict) -> None:
        """Everything that may be wrong, here already: an error in `compute_metrics` would come on one process only."""
        where = sample.get('img_path', f'image {sample["img_id"]}')
        predicted = sample['pred_instances']
        if not self.groups:
            raise ValueError(f"{type(self).__name__}.dataset_meta was not set; it needs the data set's metainfo")
        if sample['img_id'] not in self._coco_api.imgs:
            raise ValueError(
                f'{where}: {self.ann_file} lists no image with the id {sample["img_id"]!r}; the metric and the data '
                'set need the same annotation file'
            )
        if len(predicted['labels']) and int(predicted['labels'].max()) >= len(self.cat_ids):
            raise ValueError(
                f'{where}: the model detects class {int(predicted["labels"].max())}, the data set has '
                f'{len(self.cat_ids)} classes; the model needs the vocabulary of the data set'
            )
        if 'segm' in self.metrics and 'masks' not in predicted:
            raise ValueError(f"{where}: metric 'segm' needs masks, which the model does not predict; use metric='bbox'")

    def compute_metrics(self, results: list[tuple[dict, dict]]) -> dict[str, float]:
        """Figures ``{kind}_{name}`` over all images of the annotation file; also logs the tables, writes the file."""
        logger = MMLogger.get_current_instance()
        found = self._detections([prediction for _, prediction in results])
        precision = {}
        for kind, detections in found.items():
            if not detections:
                logger.warning(f'{kind}: nothing was detected in {len(results)} images, so all figures are 0')
            precision[kind] = self._precision(detections, kind)
        figures = {kind: self._figures(part) for kind, part in precision.items()}
        metrics = {f'{kind}_{name}': value for kind, part in figures.items() for name, value in part.items()}
        summary = {'metrics': metrics, 'images': len(results)}
        tables = [figure_table(figures)]
        if self.per_class:
            summary['per_class'] = self._classes(precision)
            tables.append(class_table(summary['per_class']))
        logger.info('AP in %:\n' + '\n\n'.join(tables))
        if path := output_path(self.out_json, f'{self.prefix}_ap.json'.replace('/', '_')):
            write_json(path, summary)
        return metrics

    def _detections(self, predictions: list[dict]) -> dict[str, list[dict]]:
        """For each kind of metric, the detections in COCO's result format."""
        if not predictions:
            return {kind: [] for kind in self.metrics}
        with TemporaryDirectory() as folder:
            if self.outfile_prefix:
                Path(self.outfile_prefix).parent.mkdir(parents=True, exist_ok=True)
            files = self.results2json(predictions, self.outfile_prefix or f'{folder}/results')
            found = {kind: load(files[kind]) for kind in self.metrics}
        for detection in found.get('segm', []):
            del detection['bbox']  # or else the area of the box would decide which masks are small
        return found

    def _precision(self, detections: list[dict], kind: str) -> np.ndarray:
        """Precision ``(IoU thresholds, recalls, K, areas)`` of each label; -1 where it has no ground truth."""
        truth = self._coco_api
        with redirect_stdout(io.StringIO()):
            evaluator = COCOeval(truth, truth.loadRes(detections) if detections else COCO(), kind)
            params = evaluator.params
            params.maxDets = [self.max_dets]
            shape = (len(params.iouThrs), len(params.recThrs), len(self.cat_ids), len(params.areaRng))
            precision = np.full(shape, -1.0)
            for label in self.labels:
                category = self.cat_ids[label]
                if category not in truth.catToImgs:
                    continue
                params.catIds, params.imgIds = [category], self._images(category)
                evaluator.evaluate()
                self._excuse(evaluator.evalImgs)
                evaluator.accumulate()
                precision[:, :, label] = evaluator.eval['precision'][:, :, 0, :, 0]
        return precision

    def _classes(self, precision: dict[str, np.ndarray]) -> list[dict]:
        """One entry for each class that is evaluated, in the order of the labels."""
        group_of = {label: group for group, labels in self.groups.items() for label in labels}
        entries = []
        for label in self.labels:
            entry = {'label': label, 'name': self.dataset_meta['classes'][label], 'group': group_of[label]}
            for kind, part in precision.items():
                whole = part[:, :, label, 0]
                entry |= {f'{kind}_ap': mean_precision(whole), f'{kind}_ap50': mean_precision(whole[0])}
            entries.append(entry)
        return entries


def mean_precision(precision: np.ndarray) -> float:
    """Mean of those entries that have ground truth, -1 if there is none."""
    valid = precision[precision > -1]
    return float(valid.mean()) if valid.size else -1.0


def figure_table(figures: dict[str, dict[str, float]]) -> str:
    """Table of the figures, in percent: a row for each kind, a dash where there is no ground truth."""
    rows = [[kind, *map(_percent, part.values())] for kind, part in figures.items()]
    return format_table(['', *next(iter(figures.values()))], rows)


def class_table(entries: Sequence[dict]) -> str:
    """Table of the classes, in percent, from the ``per_class`` entries of :class:`ClassAPMetric`."""
    columns = [key for key in entries[0] if key not in ('label', 'name', 'group')]
    rows = [[entry['name'], entry['group'], *(_percent(entry[key]) for key in columns)] for entry in entries]
    return format_table(['class', 'group', *columns], rows)


def _percent(share: float) -> float | None:
    return None if share < 0 else 100 * share
