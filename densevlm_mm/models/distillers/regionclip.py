"""RegionCLIP as CLIPSelf's and DenseVLM's experiments have it: regions learn from pseudo-labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.device import get_device
from mmengine.structures import BaseDataElement
from torch import Tensor

from densevlm_mm.datasets import read_category_names
from densevlm_mm.models.preprocessor import send
from densevlm_mm.registry import MODELS
from densevlm_mm.vlm import class_embeddings, load_class_embeddings
from densevlm_mm.vlm.region_pooling import pad_regions

from .base import RegionDistiller, batch_boxes
from .step_random import step_generator


@MODELS.register_module()
class RegionCLIP(RegionDistiller):
    """Classify boxes among thousands of nouns, one of which a CLIP has guessed for each box beforehand.

    The idea is RegionCLIP's (Zhong et al., CVPR 2022, arXiv:2112.09106); data, loss and schedule are those of the
    comparison in CLIPSelf (arXiv:2310.01403), in which all nouns' logits are cosines times the model's own logit scale.

    Args:
        student: Arguments of `load_vlm`, and ``trainable_blocks``.
        nouns: COCO-format file whose categories, sorted by id, are the nouns: that of the data set; or their names.
        loss: Config of the loss.
        templates: Prompt templates of the nouns.
        text_embeddings: Optional file with ready embeddings of the nouns, rows in their order; they are L2-normalised.
        seed: Seed of the nouns that the loss samples.
        eval_vocabulary: See `RegionModel`.
        eval_templates: See `RegionModel`.
        data_preprocessor: See `RegionModel`.
    """

    def __init__(
        self,
        *,
        student: Mapping[str, Any],
        nouns: str | Sequence[str],
        loss: Mapping[str, Any],
        templates: str | Sequence[str] = 'vild',
        text_embeddings: str | None = None,
        seed: int = 0,
        eval_vocabulary: Any = None,
        eval_templates: str | Sequence[str] = 'vild',
        data_preprocessor: Mapping | None = None,
    ) -> None:
        super().__init__(
            student=student,
            eval_vocabulary=eval_vocabulary,
            eval_templates=eval_templates,
            data_preprocessor=data_preprocessor,
        )
        self.nouns = read_category_names(nouns) if isinstance(nouns, str) else tuple(nouns)
        if text_embeddings is None:
            texts = class_embeddings(self.student.to(get_device()), self.nouns, templates)
        else:
            texts = load_class_embeddings(text_embeddings, self.nouns, self.student.embed_dim)
        self.register_buffer('noun_text', F.normalize(texts, dim=-1), persistent=False)
        self.classification_loss = MODELS.build(loss)
        self.seed = seed

    def loss(self, inputs: Tensor, data_samples: list[BaseDataElement]) -> dict[str, Tensor]:
        """Classification loss of a batch.

        Args:
            inputs: ``(B, 3, H, W)``, normalised.
            data_samples: ``gt_regions`` with ``boxes`` (N, 4), xyxy in 0..1, and ``labels`` (N,).

        Returns:
            ``loss_classification``, and ``num_regions`` of this process for the log.

        Raises:
            ValueError: If a label is none of the nouns.
        """
        boxes, valid = batch_boxes(data_samples, inputs.device)
        labels = send(pad_regions([sample.gt_regions.labels for sample in data_samples])[0], inputs.device)
        features = F.normalize(self.student_regions(inputs, boxes), dim=-1)
        with torch.autocast(inputs.device.type, enabled=False):
            logits = self.student.logit_scale.exp().detach().float() * features @ self.noun_text.T
        loss = self.classification_loss(
            logits.flatten(0, 1), labels.flatten(), valid.flatten(), generator=step_generator(self.seed)
        )
        return dict(loss_classification=loss, num_regions=valid.sum().float())
