"""How fast regions are classified."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor

from densevlm_mm.models import RegionClassifier
from densevlm_mm.vlm.factory import resolve_dtype

from .options import PROJECT, EvaluateOptions, Progress
from .reference_like import box_features, dense_features, image_embeddings, mask_features
from .synthetic import arch_named, class_rows, ellipse_masks, random_boxes
from .timing import StageClock, Timing, summarize, take_turns


class SyntheticClassifier(RegionClassifier):
    """A `RegionClassifier` with made-up class embeddings: making real ones would take longer than the benchmark.

    Attributes:
        rows: Class embeddings ``(K, C)``.
    """

    rows: Tensor

    def eval_text(self) -> Tensor:
        """Class embeddings ``(K, C)``."""
        return self.rows


@dataclass(frozen=True)
class ImageOfRegions:
    """An image under evaluation.

    Attributes:
        pixels: ``(3, H, W)`` uint8.
        boxes: ``(N, 4)``, xyxy in 0..1.
        masks: ``(N, h, w)`` on the token grid.
        crops: ``(N, 3, S, S)`` uint8.
    """

    pixels: Tensor
    boxes: Tensor
    masks: Tensor
    crops: Tensor


# With crops or without, to cosines (sum N, K) of 'boxes', 'masks' and perhaps 'crops' with the classes.
Predict = Callable[[bool], dict[str, Tensor]]


def measure_evaluate(options: EvaluateOptions, progress: Progress) -> dict[str, Any]:
    """Measure the classification of boxes and masks; and of crops too, if asked for.

    Returns:
        ``measurements``: without crops, and with them.
    """
    predictors = build_predictors(options)
    measurements = []
    for with_crops in (False, True)[: 1 + options.crops]:
        setting = f'boxes and masks{", and crops" if with_crops else ""}'
        progress(setting)
        runs = {name: _timed(predict, with_crops, options.device) for name, predict in predictors.items()}
        timings = take_turns(runs, repeats=options.repeats, warmup=options.warmup, progress=progress)
        measurements.append({'setting': setting, **summarize(timings, options.images)})
    return {'measurements': measurements}


def build_predictors(options: EvaluateOptions) -> dict[str, Predict]:
    """What classifies the regions of the same images with the same weights."""
    model = build_classifier(options)
    images = make_images(options, model)
    predictors: dict[str, Predict] = {PROJECT: ProjectPredictor(options, model, images)}
    if options.baseline != 'none':
        predictors[options.baseline] = ReferenceLikePredictor(options, model, images)
    return predictors


def build_classifier(options: EvaluateOptions) -> SyntheticClassifier:
    """Model with random weights."""
    torch.manual_seed(0)
    names = [f'class {number}' for number in range(options.classes)]
    vlm = dict(arch=arch_named(options.arch), device=options.device)
    model = SyntheticClassifier(vlm=vlm, eval_vocabulary=names).to(options.device).eval()
    model.rows = class_rows(options.classes, model.vlm.embed_dim, options.device)
    return model


def make_images(options: EvaluateOptions, model: RegionClassifier) -> list[ImageOfRegions]:
    """Images of noise, with boxes and the ellipses inside them."""
    tower, generator = model.vlm.visual, torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randint(256, shape, dtype=torch.uint8, generator=generator)

    images = []
    for _ in range(options.images):
        pixels = noise(3, options.image_size, options.image_size)
        boxes = random_boxes(options.regions, generator)
        masks = ellipse_masks(boxes, tower.grid_of(pixels[None]))
        images.append(ImageOfRegions(pixels, boxes, masks, noise(options.regions, 3, *tower.image_size)))
    return images


class ProjectPredictor:
    """`RegionClassifier.test_step` in batches: one pass through the image tower serves boxes and masks.

    Args:
        options: What is measured.
        model: The model.
        images: What it classifies; their pixels and crops are uint8, as its loader makes them.
    """

    def __init__(self, options: EvaluateOptions, model: RegionClassifier, images: Sequence[ImageOfRegions]) -> None:
        self.options = options
        self.model = model
        size = options.batch_size
        self.batches = [images[start : start + size] for start in range(0, len(images), size)]

    def __call__(self, with_crops: bool) -> dict[str, Tensor]:
        samples = [sample for batch in self.batches for sample in self._predict(batch, with_crops)]
        fields = {'boxes': 'box_logits', 'masks': 'mask_logits'} | ({'crops': 'crop_logits'} if with_crops else {})
        return {kind: torch.cat([s.pred_regions[field] for s in samples]) for kind, field in fields.items()}

    def _predict(self, images: Sequence[ImageOfRegions], with_crops: bool) -> list[BaseDataElement]:
        samples = []
        for image in images:
            regions = InstanceData(boxes=image.boxes, masks=image.masks)
            if with_crops:
                regions.crops = image.crops
            samples.append(BaseDataElement(gt_regions=regions))
        with torch.no_grad(), autocast(self.options):
            return self.model.test_step({'inputs': [image.pixels for image in images], 'data_samples': samples})


class ReferenceLikePredictor:
    """One image at a time; a pass through the image tower for its boxes, another one for its masks.

    Args:
        options: What is measured.
        model: Where the weights and the class embeddings are.
        images: What it classifies; pixels and crops are normalised beforehand, which is its loader's work.
    """

    def __init__(self, options: EvaluateOptions, model: RegionClassifier, images: Sequence[ImageOfRegions]) -> None:
        self.options = options
        self.tower = model.vlm.visual
        self.texts = model.eval_text()
        mean, std = (values.cpu() for values in (model.data_preprocessor.mean, model.data_preprocessor.std))
        self.images = [
            replace(image, pixels=(image.pixels - mean) / std, crops=(image.crops - mean) / std) for image in images
        ]

    def __call__(self, with_crops: bool) -> dict[str, Tensor]:
        with torch.no_grad(), autocast(self.options):
            logits = [self._predict(image, with_crops) for image in self.images]
        return {kind: torch.cat([per_image[kind] for per_image in logits]) for kind in logits[0]}

    def _predict(self, image: ImageOfRegions, with_crops: bool) -> dict[str, Tensor]:
        device, fused = self.texts.device, self.options.fused
        pixels, boxes, masks = (part.to(device) for part in (image.pixels[None], image.boxes, image.masks))
        of_boxes = F.normalize(box_features(dense_features(self.tower, pixels, fused=fused), [boxes]), dim=-1)
        features = {'boxes': of_boxes, 'masks': mask_features(dense_features(self.tower, pixels, fused=fused), [masks])}
        if with_crops:
            features['crops'] = image_embeddings(self.tower, image.crops.to(device), fused=fused)
        return {kind: values @ self.texts.T for kind, values in features.items()}


def _timed(predict: Predict, with_crops: bool, device: str) -> Callable[[], Timing]:
    clock = StageClock(device)

    def run() -> Timing:
        clock.start()
        predict(with_crops)
        return clock.stop()

    return run


def autocast(options: EvaluateOptions) -> AbstractContextManager:
    """Matrix products in the dtype that is asked for."""
    dtype = resolve_dtype(options.dtype)
    return torch.autocast(torch.device(options.device).type, dtype=dtype, enabled=dtype != torch.float32)
