"""Decoupled content and context, after DeCLIP (Wang et al., CVPR 2025, arXiv:2505.04410)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from densevlm_mm.registry import MODELS
from densevlm_mm.vlm.region_pooling import pool_boxes

from .base import batch_boxes
from .clipself import CropDistiller
from .pixels import Renormalize


@MODELS.register_module()
class DeCLIP(CropDistiller):
    """Teach a dense map what its regions show, and its last attention which tokens belong together.

    DeCLIP's published idea is to split the last block's attention in two features with a teacher each: *content*, the
    dense features, whose boxes are aligned with the original model's image embeddings of their crops; and *context*,
    the queries (and keys) that the attention map is made of, whose correlations are aligned with those of a vision
    foundation model. The dense map itself comes from such self-correlating attention ('csa', 'qq', ...).

    Written from descriptions of the paper; none of the released code is used. Our own choices, which may differ from
    it: the projections of all heads, and of both letters, stand side by side when their cosines are taken; the distance
    of the correlations is `CorrelationLoss`; the foundation model sees the image at a size that gives it the student's
    grid.

    Args:
        student: See `CropDistiller`. Its ``dense_mode`` should be one of DeCLIP's self-correlations.
        foundation: Config of the vision foundation model.
        content_loss: Config of the loss between region features and embeddings of crops.
        context_loss: Config of the loss between the context features and those of the foundation model.
        context: Letters of the last block's projections that make the context: 'q', 'k' or 'qk'. They train.
        teacher: See `CropDistiller`.
        eval_vocabulary: See `RegionModel`.
        eval_templates: See `RegionModel`.
        data_preprocessor: See `RegionModel`.
    """

    def __init__(
        self,
        *,
        student: Mapping[str, Any],
        foundation: Mapping[str, Any],
        content_loss: Mapping[str, Any],
        context_loss: Mapping[str, Any],
        context: str = 'qk',
        teacher: Mapping[str, Any] | None = None,
        eval_vocabulary: Any = None,
        eval_templates: str | Sequence[str] = 'vild',
        data_preprocessor: Mapping | None = None,
    ) -> None:
        super().__init__(
            student=student,
            teacher=teacher,
            eval_vocabulary=eval_vocabulary,
            eval_templates=eval_templates,
            data_preprocessor=data_preprocessor,
        )
        self.student.visual.set_trainable(student['trainable_blocks'], self.student.dense_mode, context)
        self.context = context
        foundation_model = MODELS.build(foundation)
        self.to_foundation = Renormalize(self.pixels, foundation_model.pixels)
        self.hold_teacher(nn.ModuleDict({'crops': self.teacher, 'foundation': foundation_model}))
        self.content_loss = MODELS.build(content_loss)
        self.context_loss = MODELS.build(context_loss)

    @property
    def crop_teacher(self) -> nn.Module:
        """See `CropDistiller`."""
        return self.teacher['crops']

    def loss(self, inputs: Tensor, data_samples: list[BaseDataElement]) -> dict[str, Tensor]:
        """Content and context loss of a batch.

        Args:
            inputs: ``(B, 3, H, W)``, normalised.
            data_samples: ``gt_regions`` with ``boxes`` (N, 4), xyxy in 0..1, and ``crops`` (N, 3, S, S) of bytes.

        Returns:
            ``loss_content`` and ``loss_context``, and ``num_regions`` of this process for the log.

        Raises:
            ValueError: If the samples have no crops.
        """
        boxes, valid = batch_boxes(data_samples, inputs.device)
        targets = self.crop_embeddings(data_samples)
        dense, context = self.student.visual.encode_dense_and_context(inputs, self.student.dense_mode, self.context)
        features = pool_boxes(F.normalize(dense, dim=1), boxes)
        correlated = self.teacher['foundation'](self.to_foundation(inputs), tuple(context.shape[-2:]))
        return dict(
            loss_content=self.content_loss(features.flatten(0, 1), targets.flatten(0, 1), valid.flatten()),
            loss_context=self.context_loss(context, correlated),
            num_regions=valid.sum().float(),
        )
