"""What a CLIP by itself says of images: classes of regions, maps of similarity."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from PIL import Image
from torch import Tensor

from densevlm_mm.datasets.grids import grid_boxes
from densevlm_mm.models.region_classifier import cosines
from densevlm_mm.models.vlm_model import freeze_for_evaluation
from densevlm_mm.visualization import draw_regions, draw_similarity
from densevlm_mm.vlm import VLM, Vocabulary, build_vocabulary, class_embeddings, load_vlm
from densevlm_mm.vlm.prompts import get_templates
from densevlm_mm.vlm.region_pooling import pool_boxes

from .model_sources import ClipSource

# DenseVLM is trained at this size; CLIPs for smaller images than the usual 224 px keep to their own.
_SIZE, _USUAL_NATIVE = 512, 224
Grid = tuple[int, int]


class ClipTask(ABC):
    """Base of what needs a CLIP and nothing else.

    Args:
        source: The CLIP.
        vocabulary: Classes; None takes those of the source's config.
        device: Where it runs.
        templates: Prompt templates; None takes the source's.
        size: Longest side that images are resized to, in px; None takes the source's, else 512.

    Raises:
        ValueError: If nobody names classes, or an option is out of range.
    """

    def __init__(
        self, source: ClipSource, vocabulary: Any, *, device: str, templates: Any = None, size: int | None = None
    ) -> None:
        self.templates = source.templates if templates is None else templates
        get_templates(self.templates)
        first = build_vocabulary(chosen_vocabulary(vocabulary, source.vocabulary))
        self.vlm = freeze_for_evaluation(load_vlm(**source.vlm, device=device))
        native = max(self.vlm.visual.image_size)
        self.size = size or source.size or (native if native < _USUAL_NATIVE else _SIZE)
        self.set_vocabulary(first)

    def set_vocabulary(self, vocabulary: Any) -> None:
        """Ask for other classes from now on; see `build_vocabulary`."""
        vocabulary = build_vocabulary(vocabulary)
        self._texts = class_embeddings(self.vlm, vocabulary, self.templates, normalize=True)
        self.vocabulary: Vocabulary = vocabulary

    @torch.no_grad()
    def predict(self, images: Sequence[np.ndarray], regions: Sequence[Tensor] | Grid) -> list[BaseDataElement]:
        """A sample for each image ``(H, W, 3)``, RGB uint8; images that become equally large run as a batch.

        Args:
            images: The images.
            regions: Of tasks that know regions: boxes ``(N, 4)`` of each image, xyxy in px, or the rows and columns of
                a grid.
        """
        inputs = [to_input(image, self.size, self.vlm) for image in images]
        alike = len({one.shape for one in inputs}) == 1
        batches = [torch.stack(inputs)] if alike else [one[None] for one in inputs]
        dense = [one for batch in batches for one in self.vlm.encode_dense(batch.to(self.vlm.device))]
        sizes = [image.shape[:2] for image in images]
        return [
            self._describe(*one, regions[i] if isinstance(regions, list) else regions)
            for i, one in enumerate(zip(dense, sizes, strict=True))
        ]

    @abstractmethod
    def _describe(self, dense: Tensor, size: tuple[int, int], regions: Tensor | Grid) -> BaseDataElement: ...

    @abstractmethod
    def as_dict(self, sample: BaseDataElement) -> dict[str, Any]:
        """Plain numbers and text of a sample."""

    @abstractmethod
    def draw(self, image: np.ndarray, sample: BaseDataElement, *, score_thr: float) -> np.ndarray:
        """The picture of a sample: RGB uint8."""


class RegionTask(ClipTask):
    """Regions, each with its most probable class: what DenseVLM's teacher retrieves, and its student learns."""

    def _describe(self, dense: Tensor, size: tuple[int, int], regions: Tensor | Grid) -> BaseDataElement:
        height, width = size
        boxes = regions if isinstance(regions, Tensor) else grid_boxes(width, height, *regions)
        shares = boxes / boxes.new_tensor([width, height, width, height])
        pooled = pool_boxes(dense[None], shares[None].to(dense.device))[0]
        probabilities = (self.vlm.logit_scale.exp().float() * cosines(pooled, self._texts)).softmax(-1).cpu()
        scores, labels = probabilities.max(-1)
        instances = InstanceData(bboxes=boxes, labels=labels, scores=scores, probabilities=probabilities)
        return BaseDataElement(pred_instances=instances)

    def as_dict(self, sample: BaseDataElement) -> dict[str, Any]:
        """``bboxes`` (xyxy, px), ``labels``, ``names`` and ``scores`` of the regions."""
        return boxes_as_dict(sample.pred_instances, self.vocabulary)

    def draw(self, image: np.ndarray, sample: BaseDataElement, *, score_thr: float) -> np.ndarray:
        """Regions with names and confidences; those below `score_thr` as what training would drop."""
        found = sample.pred_instances
        boxes, labels, scores = (found[key].numpy() for key in ('bboxes', 'labels', 'scores'))
        return draw_regions(image, boxes, labels, scores, self.vocabulary, score_thr=score_thr)


class SimilarityTask(ClipTask):
    """Maps of the cosine of every pixel with every name."""

    def _describe(self, dense: Tensor, size: tuple[int, int], regions: Tensor | Grid) -> BaseDataElement:
        maps = cosines(dense.movedim(0, -1), self._texts).movedim(-1, 0)
        maps = F.interpolate(maps[None], size=size, mode='bilinear', align_corners=False)[0]
        return BaseDataElement(similarity=PixelData(data=maps.cpu()))

    def as_dict(self, sample: BaseDataElement) -> dict[str, Any]:
        """``labels``, ``names``, ``lowest`` and ``highest`` cosine, and ``points``: where it is highest, (x, y) px."""
        maps = sample.similarity.data
        flat = maps.flatten(1)
        at = flat.argmax(1)
        points = torch.stack([at % maps.shape[-1], at // maps.shape[-1]], dim=1)
        return {
            'labels': list(range(len(maps))),
            'names': list(self.vocabulary.names),
            'lowest': flat.amin(1).tolist(),
            'highest': flat.amax(1).tolist(),
            'points': points.tolist(),
        }

    def draw(self, image: np.ndarray, sample: BaseDataElement, *, score_thr: float) -> np.ndarray:
        """A heat map per name; there is no threshold."""
        return draw_similarity(image, sample.similarity.data.numpy(), self.vocabulary.names)


def to_input(image: np.ndarray, size: int, vlm: VLM) -> Tensor:
    """An image as the tower takes it: ``(3, h, w)``, normalised, of whole patches.

    The longest side becomes `size`, and both are rounded to whole patches, so that nothing is cut off or padded.

    Args:
        image: ``(H, W, 3)`` RGB uint8.
        size: In px.
        vlm: Its patches, mean and standard deviation.
    """
    tower, factor = vlm.visual, size / max(image.shape[:2])
    sides = [
        max(1, round(side * factor / patch)) * patch
        for side, patch in zip(image.shape[:2], tower.patch_size, strict=True)
    ]
    resized = np.array(Image.fromarray(image).resize(sides[::-1], Image.Resampling.BICUBIC))
    mean, std = (torch.tensor(values)[:, None, None] for values in (tower.mean, tower.std))
    return (torch.from_numpy(resized).permute(2, 0, 1) / 255 - mean) / std


def boxes_as_dict(instances: InstanceData, vocabulary: Vocabulary) -> dict[str, Any]:
    """``bboxes``, ``labels``, ``names`` and ``scores`` of instances, plain."""
    labels = instances.labels.tolist()
    return {
        'bboxes': instances.bboxes.tolist(),
        'labels': labels,
        'names': [vocabulary.names[label] for label in labels],
        'scores': instances.scores.tolist(),
    }


def chosen_vocabulary(given: Any, of_config: Any) -> Any:
    """The classes to ask for.

    Raises:
        ValueError: If there are none.
    """
    if given is None and of_config is None:
        raise ValueError("there are no class names: give vocabulary=['cat', 'dog'], a shipped name or a file")
    return of_config if given is None else given
