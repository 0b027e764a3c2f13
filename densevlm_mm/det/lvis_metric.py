"""LVIS's AP: federated ground truth, and figures for rare, common and frequent classes."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch
from mmengine.structures import InstanceData

from densevlm_mm.registry import METRICS

from .class_ap import ClassAPMetric, mean_precision

FREQUENCIES = {'r': 'rare', 'c': 'common', 'f': 'frequent'}
# What MMDetection's metrics read of a prediction.
FIELDS = ('bboxes', 'scores', 'labels', 'masks', 'mask_scores')


@METRICS.register_module()
class OVLVISMetric(ClassAPMetric):
    """AP on LVIS v1, in which each image is annotated with regard to a few classes only.

    The rules are those of LVIS (Gupta et al., https://arxiv.org/abs/1908.03195) and its public evaluator: of an image,
    the 300 best detections count. Whether a class is in it is known if it has an annotation there or is among the
    image's ``neg_category_ids``; detections of other classes are neither right nor wrong. Of the classes in its
    ``not_exhaustive_category_ids`` not all objects are annotated: a detection that matches none is not counted.

    Returns ``{bbox,segm}_{AP,AP50,AP75,APs,APm,APl,APr,APc,APf}``: names and prefix are those of MMDetection's
    ``LVISMetric``, which needs the package ``lvis``, whose release on PyPI fails under numpy 2. Masks are small, medium
    or large by their own area. For the arguments see :class:`ClassAPMetric`.
    """

    default_prefix = 'lvis'
    max_dets = 300  # of an image; hence no class has more

    def _check_annotations(self) -> None:
        super()._check_annotations()
        for category in self._coco_api.cats.values():
            if category.get('frequency') not in FREQUENCIES:
                raise ValueError(
                    f"{self.ann_file}: category {category['name']!r} has no 'frequency' r, c or f; use LVIS's "
                    'annotations, or OVDetectionMetric for data that are no federated ones'
                )
        self._known: dict[int, set[int]] = {}
        self._incomplete: set[tuple[int, int]] = set()
        self._images_of: defaultdict[int, list[int]] = defaultdict(list)
        for image in self._coco_api.imgs.values():
            self._read_image(image)

    def _read_image(self, image: dict) -> None:
        """Of which categories the presence in the image is known, and of which not all objects are annotated."""
        number = image['id']
        for key in ('neg_category_ids', 'not_exhaustive_category_ids'):
            if key not in image:
                raise ValueError(
                    f"{self.ann_file}: image {number} has no '{key}'; use LVIS's annotations, or OVDetectionMetric "
                    'for data that are no federated ones'
                )
        positive = {annotation['category_id'] for annotation in self._coco_api.imgToAnns.get(number, ())}
        self._known[number] = positive | set(image['neg_category_ids'])
        self._incomplete |= {(number, category) for category in image['not_exhaustive_category_ids']}
        for category in self._known[number]:
            self._images_of[category].append(number)

    def _group_labels(self, meta: dict) -> dict[str, list[int]]:
        if None in self.cat_ids:
            missing = meta['classes'][self.cat_ids.index(None)]
            raise ValueError(f"{self.ann_file} has no category {missing!r}, which the data set's metainfo names")
        groups = {name: [] for name in FREQUENCIES.values()}
        for label, category in enumerate(self.cat_ids):
            groups[FREQUENCIES[self._coco_api.cats[category]['frequency']]].append(label)
        return groups

    def _counting(self, sample: dict) -> dict:
        """Of the best detections of an image, those of known classes: a small share, which spares much work later."""
        predicted = sample['pred_instances']
        predicted = InstanceData(**{key: predicted[key] for key in FIELDS if key in predicted})
        best = predicted[predicted.scores.argsort(descending=True, stable=True)[: self.max_dets]]
        known = self._known[sample['img_id']]
        counts = [self.cat_ids[label] in known for label in best.labels.tolist()]
        return sample | {'pred_instances': best[torch.tensor(counts, dtype=torch.bool, device=best.labels.device)]}

    def _images(self, category: int) -> list[int]:
        return self._images_of[category]

    def _excuse(self, matches: list[dict | None]) -> None:
        for match in matches:
            if match and (match['image_id'], match['category_id']) in self._incomplete:
                match['dtIgnore'] |= match['dtMatches'] == 0

    def _figures(self, precision: np.ndarray) -> dict[str, float]:
        parts = {'AP': precision[..., 0], 'AP50': precision[0, ..., 0], 'AP75': precision[5, ..., 0]}
        parts |= {f'AP{size}': precision[..., area] for area, size in enumerate('sml', start=1)}
        parts |= {f'AP{letter}': precision[:, :, self.groups[name], 0] for letter, name in FREQUENCIES.items()}
        return {name: mean_precision(part) for name, part in parts.items()}
