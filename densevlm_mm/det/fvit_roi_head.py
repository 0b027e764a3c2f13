"""F-ViT's RoI head: MMDetection's, whose scores in evaluation are those of detector and frozen VLM together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mmdet.models.roi_heads import StandardRoIHead
from mmengine.structures import InstanceData
from torch import Tensor

from densevlm_mm.models.region_classifier import cosines
from densevlm_mm.registry import MODELS
from densevlm_mm.vlm import Vocabulary

from .region_features import LevelsWithRegions
from .score_fusion import ScoreFusion


@MODELS.register_module()
class FViTRoIHead(StandardRoIHead):
    """A standard RoI head that classifies by text embeddings and asks the frozen VLM for a second opinion.

    The VLM judges the proposals, not the boxes regressed from them, and only in evaluation. Its opinion of a region
    comes with the features (`LevelsWithRegions`), so that nothing is kept here between calls.

    Args:
        score_fusion: Config of the `ScoreFusion`.
        options: Those of MMDetection's ``StandardRoIHead``. The box head needs a `TextEmbeddingClassifier` as
            ``cls_predictor_cfg`` and a `VocabularyCrossEntropyLoss` as ``loss_cls``.
    """

    def __init__(self, *, score_fusion: Mapping[str, Any], **options: Any) -> None:
        super().__init__(**options)
        self.score_fusion: ScoreFusion = MODELS.build(score_fusion)
        if not self.bbox_head.reg_class_agnostic or (self.with_mask and not self.mask_head.class_agnostic):
            raise ValueError(
                'novel classes have no boxes or masks of their own to learn from: set reg_class_agnostic=True in the '
                'box head and class_agnostic=True in the mask head'
            )

    def set_vocabulary(self, vocabulary: Vocabulary, texts: Tensor | None, background: Tensor | None) -> None:
        """Detect these classes from now on.

        Args:
            vocabulary: K classes; those that it calls base train, and novel ones are scored with the VLM's weight
                of their own.
            texts: Their embeddings ``(K, C)``, L2-normalised. None leaves them to the detector's checkpoint.
            background: Embedding ``(C,)`` of the word "background", likewise.
        """
        for head in (self.bbox_head, self.mask_head if self.with_mask else None):
            if head is not None:
                head.num_classes = len(vocabulary)
        self.bbox_head.loss_cls.set_vocabulary(vocabulary)
        self.score_fusion.set_vocabulary(vocabulary)
        if texts is not None:
            self.bbox_head.fc_cls.set_texts(texts, background)

    def loss(self, x: tuple[Tensor, ...], *args: Any) -> dict[str, Tensor]:
        """See ``StandardRoIHead``; the detector's own loss in eval mode too, without the VLM's scores."""
        return super().loss(tuple(x), *args)

    def predict_bbox(
        self,
        x: LevelsWithRegions,
        batch_img_metas: list[dict],
        rpn_results_list: list[InstanceData],
        rcnn_test_cfg: Mapping,
        rescale: bool = False,
    ) -> list[InstanceData]:
        """See ``StandardRoIHead``; the proposals' scores go along with the features."""
        if all('scores' in proposals for proposals in rpn_results_list):
            x = x.with_objectness(torch.cat([proposals.scores for proposals in rpn_results_list]))
        return super().predict_bbox(x, batch_img_metas, rpn_results_list, rcnn_test_cfg, rescale)

    def _bbox_forward(self, x: tuple[Tensor, ...], rois: Tensor) -> dict[str, Tensor]:
        results = super()._bbox_forward(x, rois)
        if isinstance(x, LevelsWithRegions):
            agreement = cosines(x.regions.encode(rois), self.bbox_head.fc_cls.text_columns())
            results['cls_score'] = self.score_fusion(results['cls_score'], agreement, x.objectness)
        elif not self.training:  # the box head expects log scores
            results['cls_score'] = self.score_fusion(results['cls_score'], None)
        return results

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        """A head without masks takes the checkpoint of one with, which is how F-ViT transfers to other data."""
        if not self.with_mask:
            for key in [key for key in state_dict if key.startswith(f'{prefix}mask_head.')]:
                del state_dict[key]
        super()._load_from_state_dict(state_dict, prefix, *args)
