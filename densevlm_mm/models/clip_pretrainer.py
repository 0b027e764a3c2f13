"""Contrastive pre-training of a small CLIP, from captions and from labelled regions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from mmengine.structures import BaseDataElement
from open_clip.loss import ClipLoss
from torch import Tensor

from densevlm_mm.registry import MODELS
from densevlm_mm.vlm import load_vlm
from densevlm_mm.vlm.prompts import fill_template, get_templates
from densevlm_mm.vlm.region_pooling import pad_regions, pool_boxes, pool_masks
from densevlm_mm.vlm.text_embeddings import average_synonyms

from .region_classifier import RegionModel


@MODELS.register_module()
class CLIPPretrainer(RegionModel):
    """Train every weight of a VLM.

    Args:
        vlm: Arguments of `load_vlm`.
        eval_vocabulary: Classes of the labelled regions, in the order of the labels.
        caption_weight: Factor on CLIP's symmetric image-caption loss; samples then need a ``caption``.
        region_weight: Factor on the cross-entropy of region features against the prompts of all classes; samples then
            need ``gt_regions`` with labels.
        eval_templates: See `RegionModel`; the first one is the prompt of the region loss.
        data_preprocessor: See `RegionModel`.
    """

    def __init__(
        self,
        *,
        vlm: Mapping[str, Any],
        eval_vocabulary: Any,
        caption_weight: float = 1.0,
        region_weight: float = 0.0,
        eval_templates: str | Sequence[str] = ('a photo of a {}.',),
        data_preprocessor: Mapping | None = None,
    ) -> None:
        super().__init__(
            load_vlm(**vlm),
            eval_vocabulary=eval_vocabulary,
            eval_templates=eval_templates,
            data_preprocessor=data_preprocessor,
        )
        self.caption_weight = caption_weight
        self.region_weight = region_weight
        self.clip_loss = ClipLoss()

    def loss(self, inputs: Tensor, data_samples: list[BaseDataElement]) -> dict[str, Tensor]:
        """Losses ``loss_caption`` and ``loss_region`` of a batch ``(B, 3, H, W)``, those with a weight."""
        losses = {}
        image, dense = self.vlm.visual.encode_image_and_dense(inputs, self.vlm.dense_mode)
        if self.caption_weight:
            losses['loss_caption'] = self.caption_weight * self._caption_loss(F.normalize(image, dim=-1), data_samples)
        if self.region_weight:
            losses['loss_region'] = self.region_weight * self._region_loss(F.normalize(dense, dim=1), data_samples)
        return losses

    def _caption_loss(self, image: Tensor, data_samples: list[BaseDataElement]) -> Tensor:
        tokens = self.vlm.tokenize([sample.caption for sample in data_samples])
        return self.clip_loss(image, self.vlm.encode_text(tokens), self.vlm.logit_scale.exp())

    def _region_loss(self, dense: Tensor, data_samples: list[BaseDataElement]) -> Tensor:
        """Boxes of things, masks of everything: the features that zero-shot region classification compares."""
        regions = [sample.gt_regions.to(dense.device) for sample in data_samples]
        boxes, valid = pad_regions([r.boxes for r in regions])
        masks, _ = pad_regions([r.masks for r in regions])
        labels, _ = pad_regions([r.labels for r in regions])
        things, _ = pad_regions([r.is_thing for r in regions])
        template = get_templates(self.eval_templates)[0]
        phrases, classes = self.eval_vocabulary.expanded()
        prompts = [fill_template(template, phrase) for phrase in phrases]
        texts = average_synonyms(self.vlm.encode_text(self.vlm.tokenize(prompts)), classes)
        texts = self.vlm.logit_scale.exp() * texts
        boxed = F.normalize(pool_boxes(dense, boxes)[things], dim=-1) @ texts.T
        masked = pool_masks(dense, masks)[valid] @ texts.T
        return _mean_cross_entropy(boxed, labels[things]) + _mean_cross_entropy(masked, labels[valid])


def _mean_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy per row; 0 with a gradient path, instead of NaN, where a batch has none."""
    return F.cross_entropy(logits, labels, reduction='sum') / max(len(labels), 1)
