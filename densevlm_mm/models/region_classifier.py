"""Zero-shot classification of regions: the model that `RegionAccuracy` evaluates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor

from densevlm_mm.registry import MODELS
from densevlm_mm.vlm import VLM, build_vocabulary, class_embeddings, load_vlm
from densevlm_mm.vlm.checkpoints import load_checkpoint
from densevlm_mm.vlm.region_pooling import pad_regions, pool_boxes, pool_masks
from densevlm_mm.vlm.text_embeddings import compute_class_embeddings


class RegionModel(BaseModel):
    """Base of all models here that hold a `VLM` and are evaluated on regions.

    Args:
        vlm: The model that is evaluated, and whatever a subclass does with it.
        eval_vocabulary: Classes of the evaluation set in the order of its labels; anything that `build_vocabulary`
            takes. None for a model that is only trained.
        eval_templates: Prompt templates of these classes.
        data_preprocessor: Config of the preprocessor; images enter `forward` normalised.
    """

    def __init__(
        self,
        vlm: VLM,
        *,
        eval_vocabulary: Any = None,
        eval_templates: str | Sequence[str] = 'vild',
        data_preprocessor: Mapping | None = None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor)
        self.vlm = vlm
        self.eval_vocabulary = None if eval_vocabulary is None else build_vocabulary(eval_vocabulary)
        self.eval_templates = eval_templates
        self._eval_text: Tensor | None = None

    def load_weights(self, path: str | Path) -> None:
        """Load a checkpoint of any supported format into the evaluated model, strictly.

        Raises:
            CheckpointError: See `densevlm_mm.vlm.checkpoints.load_checkpoint`.
        """
        load_checkpoint(self.vlm, path)
        self._eval_text = None

    def train(self, mode: bool = True) -> RegionModel:
        """Set training mode; class embeddings are made anew after training."""
        self._eval_text = None
        return super().train(mode)

    def forward(
        self, inputs: Tensor, data_samples: list[BaseDataElement] | None = None, mode: str = 'tensor'
    ) -> dict[str, Tensor] | list[BaseDataElement] | Tensor:
        """mmengine's entry point.

        Args:
            inputs: ``(B, 3, H, W)``, normalised.
            data_samples: One per image, with ``gt_regions``.
            mode: 'loss' gives a dict of losses, 'predict' the samples with ``pred_regions``, 'tensor' the L2-normalised
                dense features ``(B, C, h, w)``.
        """
        if mode == 'loss':
            return self.loss(inputs, data_samples)
        if mode == 'predict':
            return self.predict(inputs, data_samples)
        if mode == 'tensor':
            return self.vlm.encode_dense(inputs)
        raise ValueError(f"mode must be 'loss', 'predict' or 'tensor', got {mode!r}")

    def loss(self, inputs: Tensor, data_samples: list[BaseDataElement]) -> dict[str, Tensor]:
        """Losses of a batch."""
        raise NotImplementedError(f'{type(self).__name__} is for evaluation and has no loss')

    def predict(self, inputs: Tensor, data_samples: list[BaseDataElement]) -> list[BaseDataElement]:
        """Classify the regions of each image from one dense forward pass.

        Args:
            inputs: ``(B, 3, H, W)``, normalised.
            data_samples: ``gt_regions`` holds ``boxes`` (N, 4) in 0..1 and ``masks`` (N, h, w) on the token grid.

        Returns:
            The samples with ``pred_regions``: ``box_logits`` and ``mask_logits``, cosines ``(N, K)`` with the classes
            of `eval_vocabulary`, whose names become the samples' meta information ``vocabulary``.
        """
        dense = self.vlm.encode_dense(inputs)
        texts = self.eval_text()
        regions = [sample.gt_regions for sample in data_samples]
        boxes, _ = pad_regions([r.boxes for r in regions])
        masks, _ = pad_regions([r.masks for r in regions])
        box_logits = F.normalize(pool_boxes(dense, boxes.to(dense.device)), dim=-1) @ texts.T
        mask_logits = pool_masks(dense, masks.to(dense.device)) @ texts.T
        for sample, boxed, masked in zip(data_samples, box_logits, mask_logits, strict=True):
            count = len(sample.gt_regions.boxes)
            sample.set_metainfo({'vocabulary': self.eval_vocabulary.names})
            sample.pred_regions = InstanceData(box_logits=boxed[:count], mask_logits=masked[:count])
        return data_samples

    @torch.no_grad()
    def eval_text(self) -> Tensor:
        """Normalised embeddings ``(K, C)`` of the evaluation vocabulary, made on first use.

        Raises:
            RuntimeError: If the model was built without one.
        """
        if self.eval_vocabulary is None:
            raise RuntimeError('this model has no eval_vocabulary: set model.eval_vocabulary in the config')
        if self._eval_text is None:
            # a text tower in training changes with every step; its embeddings are not worth a cache entry
            is_fixed = not any(p.requires_grad for p in self.vlm.text.parameters())
            embed = class_embeddings if is_fixed else compute_class_embeddings
            texts = embed(self.vlm, self.eval_vocabulary.names, self.eval_templates)
            self._eval_text = F.normalize(texts.float(), dim=-1)
        return self._eval_text


@MODELS.register_module()
class RegionClassifier(RegionModel):
    """A VLM under evaluation.

    Args:
        vlm: Arguments of `load_vlm`; the checkpoint may be left out and given to ``tools/test.py``.
        eval_vocabulary: See `RegionModel`.
        eval_templates: See `RegionModel`.
        data_preprocessor: See `RegionModel`.
    """

    def __init__(
        self,
        *,
        vlm: Mapping[str, Any],
        eval_vocabulary: Any,
        eval_templates: str | Sequence[str] = 'vild',
        data_preprocessor: Mapping | None = None,
    ) -> None:
        super().__init__(
            load_vlm(**vlm).requires_grad_(False),
            eval_vocabulary=eval_vocabulary,
            eval_templates=eval_templates,
            data_preprocessor=data_preprocessor,
        )
        self.vlm.logit_scale.requires_grad_(True)  # DDP refuses a model without any parameter to train
