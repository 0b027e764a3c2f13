"""mmengine metric around :func:`region_accuracy`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_reduce
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger

from densevlm_mm.registry import METRICS

from .confusion import Confusion
from .region_accuracy import (
    RegionScores,
    check_regions,
    check_topk,
    class_kinds,
    group_accuracy,
    thing_stuff_bias,
)
from .report import class_table, group_table, output_path, write_json

# Field of ``pred_regions`` for each way of embedding a region.
SOURCES = {'boxes': 'box_logits', 'masks': 'mask_logits', 'crops': 'crop_logits'}
# The widespread ade20k_panoptic_val.json of Mask2Former's converter calls one class otherwise than everybody else.
SYNONYMS = {'plane': 'airplane'}


@dataclass(frozen=True)
class Regions:
    """Regions with ground truth and scores; of one image, or of all.

    Attributes:
        labels: ``(N,)`` int64.
        is_thing: ``(N,)`` bool.
        scores: The scores of the N regions for each of ``SOURCES``; crops may be absent.
        num_classes: K.
    """

    labels: np.ndarray
    is_thing: np.ndarray
    scores: dict[str, RegionScores]
    num_classes: int

    @classmethod
    def from_sample(cls, sample: dict) -> Regions:
        """Regions of a data sample with ``gt_regions`` and ``pred_regions``."""
        truth, predicted = sample['gt_regions'], sample['pred_regions']
        scores, widths = {}, set()
        for source, key in SOURCES.items():
            if source == 'crops' and key not in predicted:
                continue
            logits, labels, is_thing = check_regions(predicted[key], truth['labels'], truth['is_thing'])
            scores[source] = RegionScores.from_logits(logits, labels)
            widths.add(logits.shape[1])
        if len(widths) > 1:
            raise ValueError(f'the logits of {", ".join(scores)} differ in their number of classes: {sorted(widths)}')
        return cls(labels=labels, is_thing=is_thing, scores=scores, num_classes=widths.pop())

    @classmethod
    def concatenate(cls, parts: Sequence[Regions]) -> Regions:
        """All regions of the parts, of which there must be at least one; all have the same sources."""
        return cls(
            labels=np.concatenate([part.labels for part in parts]),
            is_thing=np.concatenate([part.is_thing for part in parts]),
            scores={
                source: RegionScores.concatenate([part.scores[source] for part in parts]) for source in parts[0].scores
            },
            num_classes=max(part.num_classes for part in parts),
        )


@METRICS.register_module()
class RegionAccuracy(BaseMetric):
    """Zero-shot classification of boxes and masks: mAcc of things and stuff, and the bias between them.

    Takes data samples with ``gt_regions`` (``labels``, ``is_thing``) and ``pred_regions`` (``box_logits``,
    ``mask_logits`` and, if the model made any, ``crop_logits``, all ``(N, K)``). Returns, in percent,
    ``{boxes,masks,crops}.{thing,stuff}.macc{k}`` and, from the masks, ``bias`` and ``reverse_bias`` (see
    :func:`region_accuracy`). A group that the data set has no region of has no key, and a dash in the table. Keeps
    one small entry per image, so that mmengine can drop the images that a distributed sampler repeats, and the
    figures are the same for any number of processes.

    Args:
        topk: Which top-k accuracies.
        per_class: Also show, and write, the accuracies of each class.
        confusion: Also count which class each mask is taken for, and draw which stuff is taken for which things, and
            the reverse: ``region_confusion.npz`` (see :class:`Confusion`) and ``.png`` beside the file of figures. The
            data set must say which classes are things.
        out_json: Where to write the figures; replaced by every evaluation. ``None`` puts
            ``region_accuracy.json`` beside the log file of the run, or nowhere if there is none.
        collect_device: How results travel between processes, 'cpu' or 'gpu'.
        collect_dir: Shared folder for 'cpu'; ``None`` makes a temporary one.
        prefix: Put before every key, with a slash.
    """

    # Keys are complete as they are; without this, mmengine warns that there is no prefix.
    default_prefix = ''

    def __init__(
        self,
        *,
        topk: Sequence[int] = (1, 5),
        per_class: bool = False,
        confusion: bool = False,
        out_json: str | None = None,
        collect_device: str = 'cpu',
        collect_dir: str | None = None,
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, collect_dir=collect_dir, prefix=prefix)
        self.topk = check_topk(topk)
        self.per_class = per_class
        self.confusion = confusion
        self.out_json = out_json

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keep what is needed of a batch of data samples.

        Raises:
            KeyError: A data sample lacks a field.
            ValueError: Logits and ground truth do not fit each other, or the classes of the data set; or the model's
                vocabulary, which samples may hold as ``vocabulary``, names other classes than the data set.
        """
        for sample in data_samples:
            where = sample.get('img_path', 'a data sample')
            try:
                regions = Regions.from_sample(sample)
                self._check(regions, sample.get('vocabulary'))
            except KeyError as error:
                raise KeyError(
                    f'{where}: no {error} in gt_regions (labels, is_thing) and pred_regions (box_logits, mask_logits)'
                ) from error
            except ValueError as error:
                raise ValueError(f'{where}: {error}') from error
            self.results.append(regions)

    def _check(self, regions: Regions, vocabulary: Sequence[str] | None) -> None:
        """Everything that may be wrong, here already: an error in `compute_metrics` would come on one process only."""
        meta = self.dataset_meta or {}
        classes = meta.get('classes')
        if classes and len(regions.labels) and regions.num_classes != len(classes):
            raise ValueError(
                f'the model scores {regions.num_classes} classes, the data set has {len(classes)}; the model needs the '
                'vocabulary of the data set'
            )
        if classes and vocabulary is not None:
            check_vocabulary(vocabulary, classes)
        if len(regions.labels):
            class_kinds(regions.labels, regions.is_thing, regions.num_classes, meta.get('is_thing'))
        if self.results and self.results[0].scores.keys() != regions.scores.keys():
            raise ValueError('has crop_logits while other images have none, or the reverse')
        if self.confusion and not (classes and meta.get('is_thing')):
            raise ValueError("confusion=True needs a data set whose metainfo has 'classes' and 'is_thing'")

    def evaluate(self, size: int) -> dict[str, float]:
        """Figures over all ``size`` images of all processes.

        Raises:
            ValueError: There is no region in any image. All processes raise it, so that none waits for another.
        """
        count = torch.tensor(sum(len(part.labels) for part in self.results))
        all_reduce(count)
        if not count:
            raise ValueError(
                f'none of {size} images has a region to evaluate; '
                'check the annotation file and the area range of LoadPanopticRegions'
            )
        return super().evaluate(size)

    def compute_metrics(self, results: list[Regions]) -> dict[str, float]:
        """Figures over all images, in percent; also logs the table and writes the files."""
        regions = Regions.concatenate(results)
        metrics = self._metrics(regions)
        summary = {'metrics': metrics, 'images': len(results), 'groups': self._groups(regions)}
        tables = [group_table(metrics, summary['groups'], self.topk, list(regions.scores))]
        if self.per_class:
            summary['per_class'] = self._classes(regions)
            tables.append(class_table(summary['per_class'], self.topk, list(regions.scores)))
        MMLogger.get_current_instance().info('Region accuracy in %:\n' + '\n\n'.join(tables))
        if path := output_path(self.out_json, 'region_accuracy.json'):
            write_json(path, summary)
            if self.confusion:
                self._write_confusion(regions, path.with_name('region_confusion.npz'))
        return metrics

    def _write_confusion(self, regions: Regions, path: Path) -> None:
        # matplotlib is slow to import, and few evaluations want the picture
        from densevlm_mm.visualization import plot_confusion

        meta = self.dataset_meta
        confusion = Confusion.of(regions.labels, regions.scores['masks'].top1, meta['classes'], meta['is_thing'])
        confusion.save(path)
        plot_confusion(path.with_suffix('.png'), **vars(confusion))

    def _metrics(self, regions: Regions) -> dict[str, float]:
        flags = (self.dataset_meta or {}).get('is_thing')
        kinds = class_kinds(regions.labels, regions.is_thing, regions.num_classes, flags)
        shares = thing_stuff_bias(regions.scores['masks'], regions.is_thing, kinds)
        for source, scores in regions.scores.items():
            accuracy = group_accuracy(scores, regions.labels, regions.is_thing, self.topk)
            shares |= {f'{source}.{key}': share for key, share in accuracy.items()}
        return {key: 100 * share for key, share in shares.items()}

    @staticmethod
    def _groups(regions: Regions) -> dict[str, dict[str, int]]:
        return {
            group: {'classes': len(np.unique(regions.labels[members])), 'regions': int(members.sum())}
            for group, members in (('thing', regions.is_thing), ('stuff', ~regions.is_thing))
        }

    def _classes(self, regions: Regions) -> list[dict]:
        """One entry for each class that occurs, in the order of the labels."""
        names = (self.dataset_meta or {}).get('classes') or [str(i) for i in range(regions.num_classes)]
        entries = []
        for label in np.unique(regions.labels).tolist():
            members = regions.labels == label
            entry = {
                'label': label,
                'name': names[label],
                'is_thing': bool(regions.is_thing[members][0]),
                'regions': int(members.sum()),
            }
            for source, scores in regions.scores.items():
                entry |= {f'{source}.acc{k}': 100 * float((scores.ranks[members] < k).mean()) for k in self.topk}
            entries.append(entry)
        return entries


def check_vocabulary(names: Sequence[str], classes: Sequence[str]) -> None:
    """Compares the model's classes with the data set's, by their first synonym and without regard to case.

    Args:
        names: Class names of the model, such as 'building'.
        classes: Class names of the data set, such as 'building, edifice'.

    Raises:
        ValueError: They differ; names the first class that does.
    """
    for label, (name, expected) in enumerate(zip_longest(names, classes, fillvalue='')):
        if _first_synonym(name) != _first_synonym(expected):
            raise ValueError(
                f'class {label} is {name!r} in the vocabulary of the model, but {expected!r} in the data set; set '
                "model.eval_vocabulary to the data set's classes, in the order of its labels"
            )


def _first_synonym(name: str) -> str:
    first = name.split(',')[0].strip().lower()
    return SYNONYMS.get(first, first)
