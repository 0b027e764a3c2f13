"""Segmentation with a CLIP as it is: every pixel is given the class whose text is the most similar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from mmseg.structures import SegDataSample
from torch import Tensor

from densevlm_mm.models.region_classifier import cosines
from densevlm_mm.models.vlm_model import freeze_for_evaluation
from densevlm_mm.registry import MODELS
from densevlm_mm.vlm import build_vocabulary, class_embeddings, load_vlm
from densevlm_mm.vlm.checkpoints import load_checkpoint
from densevlm_mm.vlm.prompts import get_templates
from densevlm_mm.vlm.towers import VisionTower

from .class_scores import LabelRule, label_map, resized_maps
from .preprocessor import MixedSizePreProcessor
from .vocabulary_meta import VocabularySegmentor, refuse_arguments
from .windows import num_cells, window_spans, window_weights

_WINDOWS_AT_ONCE = 8  # through the image tower; an image may have hundreds

Spans = list[tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class ViewSettings:
    """How a `TrainingFreeSegmentor` looks at images; see there.

    Raises:
        ValueError: For unknown templates, windows with gaps between them or a logit scale that is not positive.
    """

    templates: str | Sequence[str]
    window: int
    stride: int
    logit_scale: float

    def __post_init__(self) -> None:
        get_templates(self.templates)
        window_spans(self.window, self.window, self.stride)
        if not self.logit_scale > 0:
            raise ValueError(f'logit_scale must be positive, got {self.logit_scale}')


@MODELS.register_module()
class TrainingFreeSegmentor(VocabularySegmentor):
    """Dense features of a frozen VLM, compared with class names in sliding windows.

    The protocol of SCLIP, ClearCLIP and their successors: cosines of each query (a class name or synonym) with the
    dense map are enlarged bilinearly to the window's pixels, averaged over windows and resized bilinearly to the
    original image; a softmax over all queries at `logit_scale` follows, then `LabelRule`. Windows are padded with
    zeros, at the bottom and right, to whole patches. Memory does not grow with pixels times classes, see `label_map`.

    Args:
        vlm: Arguments of `load_vlm`; the checkpoint may be left out and given to ``tools/test.py``.
        vocabulary: Classes in the order of the labels; anything that `build_vocabulary` takes, such as a list of names.
        templates: Prompt templates of the queries.
        window: Side of the windows, in px of the image as the pipeline resizes it.
        stride: Px from one window to the next, at most `window`.
        logit_scale: Factor on the cosines before the softmax.
        threshold: Probability below which a pixel becomes the class "background", which the vocabulary must have.
        area_thd: See `LabelRule`.
        data_preprocessor: None takes BGR images as MMSegmentation loads them, normalises with the mean and standard
            deviation that the vision tower was trained with, and lets images of different sizes share a batch.
        pretrained: None, here and below: arguments of other segmentors, which MMSegmentation's `init_model` gives.
        train_cfg: See `pretrained`.
        test_cfg: See `pretrained`.

    Raises:
        ValueError: For options outside these, or see `set_vocabulary`.
    """

    def __init__(
        self,
        vlm: Mapping[str, Any],
        vocabulary: Any,
        *,
        templates: str | Sequence[str] = 'openai',
        window: int = 336,
        stride: int = 112,
        logit_scale: float = 40.0,
        threshold: float = 0.0,
        area_thd: float = 0.0,
        data_preprocessor: Mapping[str, Any] | None = None,
        pretrained: None = None,
        train_cfg: None = None,
        test_cfg: None = None,
    ) -> None:
        refuse_arguments(pretrained=pretrained, train_cfg=train_cfg, test_cfg=test_cfg)
        model = freeze_for_evaluation(load_vlm(**vlm))
        super().__init__(data_preprocessor=data_preprocessor or preprocessor_of(model.visual))
        self.vlm = model
        self.adopt_mode = vlm.get('dense_mode') is None
        self._normalizes_for_tower = not data_preprocessor
        self._default = ViewSettings(templates=templates, window=window, stride=stride, logit_scale=logit_scale)
        self.set_vocabulary(vocabulary, threshold=threshold, area_thd=area_thd)

    def set_vocabulary(
        self,
        vocabulary: Any,
        *,
        threshold: float = 0.0,
        area_thd: float = 0.0,
        templates: str | Sequence[str] | None = None,
        window: int | None = None,
        stride: int | None = None,
        logit_scale: float | None = None,
    ) -> None:
        """Segment into other classes from now on, by what a benchmark's protocol says of them.

        Args:
            vocabulary: See the class.
            threshold: See the class. It belongs to a vocabulary, so that an earlier one's does not stay.
            area_thd: Likewise.
            templates: See the class. None, here and below: what the model was built with.
            window: See the class.
            stride: See the class.
            logit_scale: See the class.

        Raises:
            ValueError: For values outside what the class says; if there is a threshold but no background class; or if
                the vocabulary's background needs a threshold and there is none.
        """
        vocabulary = build_vocabulary(vocabulary)
        rule = LabelRule.of(vocabulary, threshold=threshold, area_thd=area_thd)
        given = {'templates': templates, 'window': window, 'stride': stride, 'logit_scale': logit_scale}
        self.view = replace(self._default, **{key: value for key, value in given.items() if value is not None})
        self.vocabulary, self.rule = vocabulary, rule
        self._texts = None

    def load_weights(self, path: str | Path) -> None:
        """Load a checkpoint of any supported format into the VLM, strictly; text embeddings are made anew.

        Raises:
            CheckpointError: See `densevlm_mm.vlm.checkpoints.load_checkpoint`.
        """
        load_checkpoint(self.vlm, path, adopt_mode=self.adopt_mode)
        self._texts = None
        if self._normalizes_for_tower:  # the file may say by which mean and standard deviation
            self.data_preprocessor = preprocessor_of(self.vlm.visual).to(self.data_preprocessor.device)

    def train(self, mode: bool = True) -> TrainingFreeSegmentor:
        """Set training mode; text embeddings are made anew, of the weights that are there then."""
        self._texts = None
        return super().train(mode)

    def extract_feat(self, inputs: Tensor) -> Tensor:
        """Dense features ``(B, C, h, w)``, L2-normalised, of images (B, 3, H, W) as one window each."""
        return self.vlm.encode_dense(inputs)

    @torch.no_grad()
    def encode_decode(self, inputs: Tensor, batch_data_samples: list[SegDataSample] | None = None) -> Tensor:
        """Cosines ``(B, P, H, W)`` of all P queries at the pixels of images (B, 3, H, W), averaged over windows.

        For a look at them; `predict` does without so much memory.
        """
        size = inputs.shape[-2:]
        found = []
        for image in inputs:
            maps, spans = self._query_maps(image)
            found.append(resized_maps(maps, *(weights.to(maps) for weights in self._weights(spans, size))))
        return torch.stack(found)

    @torch.no_grad()
    def segment(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        """Labels ``size`` of one image.

        Args:
            image: ``(3, H, W)``, normalised.
            size: ``(rows, columns)`` of the result in px.
        """
        maps, spans = self._query_maps(image)
        rows, columns = self._weights(spans, size)
        return label_map(maps, self.rule, rows=rows, columns=columns, score=self._probabilities)

    def loss(self, inputs: Tensor, data_samples: list[SegDataSample]) -> dict[str, Tensor]:
        """There is none."""
        raise NotImplementedError(f'{type(self).__name__} is for evaluation and has no loss')

    def query_texts(self) -> Tensor:
        """Normalised embeddings ``(P, C)`` of the vocabulary's phrases, made on first use."""
        if self._texts is None:
            phrases, _ = self.vocabulary.expanded()
            self._texts = class_embeddings(self.vlm, phrases, self.view.templates, normalize=True)
        return self._texts

    def _load_from_state_dict(self, *args: Any) -> None:
        self._texts = None  # of the weights before
        super()._load_from_state_dict(*args)

    def _apply(self, *args: Any, **options: Any) -> TrainingFreeSegmentor:
        self._texts = None  # on the device before
        return super()._apply(*args, **options)

    def _forward(self, inputs: Tensor, data_samples: list[SegDataSample] | None = None) -> Tensor:
        return self.extract_feat(inputs)

    def _probabilities(self, values: Tensor) -> Tensor:
        return (self.view.logit_scale * values).softmax(0)

    def _weights(self, spans: tuple[Spans, Spans], size: tuple[int, int]) -> list[Tensor]:
        """Weights of the cells along both sides of the result, see `window_weights`."""
        sides = zip(spans, self.vlm.visual.patch_size, size, strict=True)
        return [window_weights(along, cell, target) for along, cell, target in sides]

    def _query_maps(self, image: Tensor) -> tuple[Tensor, tuple[Spans, Spans]]:
        """Cosines of all queries with the cells of all windows of an image ``(3, H, W)``.

        Returns:
            ``(P, m, n)``, the windows' maps side by side as the windows are, and the windows along either side.
        """
        texts, view = self.query_texts(), self.view
        rows, columns = (window_spans(side, view.window, view.stride) for side in image.shape[-2:])
        height, width = map(num_cells, (rows, columns), self.vlm.visual.patch_size)
        maps = texts.new_empty(len(texts), len(rows), height, len(columns), width)
        places = list(product(range(len(rows)), range(len(columns))))
        for first in range(0, len(places), _WINDOWS_AT_ONCE):
            chunk = places[first : first + _WINDOWS_AT_ONCE]
            crops = torch.stack([image[:, slice(*rows[i]), slice(*columns[j])] for i, j in chunk])
            for (i, j), found in zip(chunk, self._window_cosines(crops, texts), strict=True):
                maps[:, i, :, j] = found
        return maps.flatten(3).flatten(1, 2), (rows, columns)

    def _window_cosines(self, crops: Tensor, texts: Tensor) -> Tensor:
        """Cosines ``(n, P, h, w)`` with texts (P, C) at the cells of crops (n, 3, H, W)."""
        (height, width), (down, across) = crops.shape[-2:], self.vlm.visual.patch_size
        padded = F.pad(crops, (0, -width % across, 0, -height % down))
        return cosines(self.vlm.encode_dense(padded, normalize=False).movedim(1, -1), texts).movedim(-1, 1)


def preprocessor_of(tower: VisionTower) -> MixedSizePreProcessor:
    """The preprocessor that makes BGR images of any sizes a batch of what a tower expects."""
    mean, std = ([255 * value for value in values] for values in (tower.mean, tower.std))
    return MixedSizePreProcessor(mean=mean, std=std, bgr_to_rgb=True)
