"""AP of base, novel and all classes, as OV-COCO asks for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from densevlm_mm.registry import METRICS

from .class_ap import ClassAPMetric, mean_precision


@METRICS.register_module()
class OVDetectionMetric(ClassAPMetric):
    """Open-vocabulary detection by the generalised protocol: one evaluation over base and novel classes together.

    The data set's metainfo says which of its ``classes`` are ``base_classes`` and which ``novel_classes``; a class
    that is neither competes for detections, but has no figure. Returns ``{bbox,segm}_{base,novel,all}_{ap,ap50}``
    and, for the first of the metrics, the same without its name (``novel_ap50``), as MMDetection's ``OVCocoMetric``
    calls them; that metric overwrites the figures of boxes with those of masks, and knows no ``all_ap50`` that is not
    rounded. A group's figure is the mean over its classes that have ground truth. For the arguments see
    :class:`ClassAPMetric`.
    """

    default_prefix = 'coco'

    def compute_metrics(self, results: list[tuple[dict, dict]]) -> dict[str, float]:
        """Figures over all images of the annotation file; also logs the tables and writes the file."""
        metrics = super().compute_metrics(results)
        first = f'{self.metrics[0]}_'
        return metrics | {key.removeprefix(first): value for key, value in metrics.items() if key.startswith(first)}

    def _group_labels(self, meta: dict) -> dict[str, list[int]]:
        classes, groups = list(meta['classes']), {}
        for group in ('base', 'novel'):
            names = meta.get(f'{group}_classes')
            if not names:
                raise ValueError(
                    f"the data set's metainfo has no '{group}_classes'; OVDetectionMetric needs metainfo=dict("
                    'classes=..., base_classes=..., novel_classes=...), and mmdet.CocoMetric does without'
                )
            for name in names:
                self._check_class(name, group, classes)
            groups[group] = [classes.index(name) for name in names]
        if common := set(meta['base_classes']) & set(meta['novel_classes']):
            raise ValueError(f"'base_classes' and 'novel_classes' of the metainfo share {sorted(common)}")
        return groups

    def _check_class(self, name: str, group: str, classes: Sequence[str]) -> None:
        if name not in classes:
            raise ValueError(f"{name!r} is one of '{group}_classes' in the data set's metainfo, but not of 'classes'")
        if self.cat_ids[classes.index(name)] is None:
            raise ValueError(
                f'{self.ann_file} has no category {name!r}, one of the {group} classes; the file needs all categories '
                "of the data set's metainfo"
            )

    def _figures(self, precision: np.ndarray) -> dict[str, float]:
        figures = {}
        for group, labels in (self.groups | {'all': self.labels}).items():
            whole = precision[:, :, labels, 0]
            figures |= {f'{group}_ap': mean_precision(whole), f'{group}_ap50': mean_precision(whole[0])}
        return figures
