"""What segmentors of MMSegmentation and detectors of MMDetection say of images; both are imported on demand."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.structures import BaseDataElement
from pycocotools import mask as coco_mask
from torch import Tensor, nn

from densevlm_mm.compat import require, require_mmcv_ops
from densevlm_mm.visualization import draw_detections, draw_segmentation
from densevlm_mm.vlm import Vocabulary, build_vocabulary
from densevlm_mm.vlm.checkpoints import read_checkpoint
from densevlm_mm.vlm.prompts import get_templates

from .clip_tasks import Grid, boxes_as_dict, chosen_vocabulary
from .model_sources import ClipSource, ConfigSource
from .weights import leave_to_weights, load_model_weights

# As configs/training_free: windows of 336 px in images whose shorter side has 448.
_SHORT_SIDE, _WINDOW, _STRIDE = 448, 336, 112


class ConfiguredTask(ABC):
    """Base of what the model of a config does; images go through its own test pipeline, one by one.

    Args:
        source: The config and its weights.
        vocabulary: Classes; None takes the config's.
        device: Where it runs.

    Raises:
        ValueError: If the model is of another task, or knows no other classes than its own.
    """

    scope: str

    def __init__(self, source: ConfigSource, vocabulary: Any, *, device: str) -> None:
        weights = source.weights
        config = deepcopy(source.config) if weights is None else leave_to_weights(source.config, weights)
        # mmengine's own scope knows none of the transforms that are added for arrays
        if config.get('default_scope') in (None, 'mmengine'):
            config.default_scope = self.scope
        self.scope_name = config.default_scope
        with DefaultScope.overwrite_default_scope(self.scope_name):
            self.model = self._build(config)
        if weights is not None:
            load_model_weights(self.model, weights)
        self.model.to(device).eval()
        own = getattr(self.model, 'vocabulary', None)
        self.vocabulary: Vocabulary | None = own or _classes_of(source)
        if vocabulary is not None:
            self.set_vocabulary(vocabulary)
        if self.vocabulary is None:
            raise ValueError(f'{type(self.model).__name__}: neither weights nor config name its classes')

    @property
    def vlm(self) -> nn.Module | None:
        """The CLIP inside, whose dense mode can be chosen, or None."""
        return getattr(self.model, 'vlm', None)

    def set_vocabulary(self, vocabulary: Any) -> None:
        """Ask for other classes from now on; see `build_vocabulary`.

        Raises:
            ValueError: If the model cannot.
        """
        if not hasattr(self.model, 'set_vocabulary'):
            raise ValueError(
                f'{type(self.model).__name__} knows the classes that it was trained with and no others: leave '
                'vocabulary out, or take FViT, CATSeg or a CLIP by itself'
            )
        self.model.set_vocabulary(vocabulary)
        self.vocabulary = self.model.vocabulary

    def predict(self, images: Sequence[np.ndarray], regions: Sequence[Tensor] | Grid) -> list[BaseDataElement]:
        """A sample for each image ``(H, W, 3)``, RGB uint8; `regions` is for other tasks."""
        with DefaultScope.overwrite_default_scope(self.scope_name):
            return [self._run(np.ascontiguousarray(image[..., ::-1])).cpu() for image in images]

    @abstractmethod
    def _build(self, config: Config) -> nn.Module: ...

    @abstractmethod
    def _run(self, image: np.ndarray) -> BaseDataElement: ...

    @abstractmethod
    def as_dict(self, sample: BaseDataElement) -> dict[str, Any]:
        """Plain numbers and text of a sample; masks in COCO's run-length encoding."""

    @abstractmethod
    def draw(self, image: np.ndarray, sample: BaseDataElement, *, score_thr: float) -> np.ndarray:
        """The picture of a sample: RGB uint8."""


class SegmentTask(ConfiguredTask):
    """A class for every pixel."""

    scope = 'mmseg'

    def _build(self, config: Config) -> nn.Module:
        require('mmseg')
        from mmseg.apis import init_model
        from mmseg.models import BaseSegmentor

        steps = config.get('test_pipeline') or config.test_dataloader.dataset.pipeline
        config.test_pipeline = [step for step in steps if step['type'] not in _LABEL_LOADERS]
        model = init_model(config, device='cpu')
        if not isinstance(model, BaseSegmentor):
            raise ValueError(f'{type(model).__name__} is no segmentor: choose another task')
        return model

    def _run(self, image: np.ndarray) -> BaseDataElement:
        from mmseg.apis import inference_model

        return inference_model(self.model, image)

    def as_dict(self, sample: BaseDataElement) -> dict[str, Any]:
        """``labels``, ``names``, ``shares`` of the image and ``masks`` of the classes found, the largest first."""
        found = sample.pred_sem_seg.data[0].numpy()
        values, counts = np.unique(found, return_counts=True)
        known = [i for i in np.argsort(-counts, kind='stable') if 0 <= values[i] < len(self.vocabulary)]
        return {
            'labels': [int(values[i]) for i in known],
            'names': [self.vocabulary.names[values[i]] for i in known],
            'shares': [float(counts[i] / found.size) for i in known],
            'masks': [encode_mask(found == values[i]) for i in known],
        }

    def draw(self, image: np.ndarray, sample: BaseDataElement, *, score_thr: float) -> np.ndarray:
        """The classes over the image; there is no threshold."""
        return draw_segmentation(image, sample.pred_sem_seg.data[0].numpy(), self.vocabulary)


class DetectTask(ConfiguredTask):
    """Boxes, and masks where the detector makes them."""

    scope = 'mmdet'

    def _build(self, config: Config) -> nn.Module:
        require_mmcv_ops('Detection')
        require('mmdet')
        from mmdet.apis import init_detector
        from mmdet.models.detectors.base import BaseDetector

        with warnings.catch_warnings(record=True):  # of COCO's classes and a palette, which are not used
            model = init_detector(config, palette='random', device='cpu')
        if not isinstance(model, BaseDetector):
            raise ValueError(f'{type(model).__name__} is no detector: choose another task')
        return model

    def _run(self, image: np.ndarray) -> BaseDataElement:
        from mmdet.apis import inference_detector

        return inference_detector(self.model, image)

    def as_dict(self, sample: BaseDataElement) -> dict[str, Any]:
        """``bboxes`` (xyxy, px), ``labels``, ``names``, ``scores`` and ``splits``; ``masks`` if there are any."""
        found = boxes_as_dict(sample.pred_instances, self.vocabulary)
        found['splits'] = [self.vocabulary.split[label] for label in found['labels']]
        if 'masks' in sample.pred_instances:
            found['masks'] = [encode_mask(mask) for mask in sample.pred_instances.masks.numpy()]
        return found

    def draw(self, image: np.ndarray, sample: BaseDataElement, *, score_thr: float) -> np.ndarray:
        """The detections of at least `score_thr`."""
        found = sample.pred_instances
        boxes, labels, scores = (found[key].numpy() for key in ('bboxes', 'labels', 'scores'))
        masks = found.masks.numpy() if 'masks' in found else None
        return draw_detections(image, boxes, labels, scores, self.vocabulary, masks=masks, score_thr=score_thr)


_LABEL_LOADERS = ('densevlm_mm.LoadLabelMap', 'LoadAnnotations')


def training_free_source(
    source: ClipSource, vocabulary: Any, *, templates: Any = None, size: int | None = None
) -> ConfigSource:
    """The config of a `TrainingFreeSegmentor` for a CLIP, with the settings of ``configs/training_free``.

    Args:
        source: The CLIP.
        vocabulary: Classes; None takes those of the source's config.
        templates: Prompt templates; None takes the source's.
        size: Shorter side of images in px; None takes the source's, else 448.

    Raises:
        ValueError: If nobody names classes.
    """
    templates = source.templates if templates is None else templates
    get_templates(templates)
    side = size or source.size or _SHORT_SIDE
    model = dict(
        type='densevlm_mm.TrainingFreeSegmentor',
        vlm=source.vlm,
        vocabulary=chosen_vocabulary(vocabulary, source.vocabulary),
        templates=templates,
        window=_WINDOW,
        stride=_STRIDE,
    )
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='Resize', scale=(4 * side, side), keep_ratio=True),
        dict(type='PackSegInputs'),
    ]
    return ConfigSource(config=Config(dict(default_scope='mmseg', model=model, test_pipeline=pipeline)))


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """COCO's run-length encoding of a mask ``(H, W)``: ``size`` and ``counts``, plain text."""
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {'size': [int(side) for side in encoded['size']], 'counts': encoded['counts'].decode('ascii')}


def _classes_of(source: ConfigSource) -> Vocabulary | None:
    """Classes that the training data had, by the checkpoint."""
    if source.weights is None or not Path(source.weights).is_file():
        return None
    meta = read_checkpoint(source.weights).meta.get('dataset_meta') or {}
    classes = meta.get('classes') or ()
    return build_vocabulary(dict(things=list(classes), stuff=[])) if classes else None
