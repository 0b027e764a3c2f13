"""Zero-shot classification of regions: the model that `RegionAccuracy` evaluates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor

from densevlm_mm.registry import MODELS
from densevlm_mm.vlm import VLM, build_vocabulary, class_embeddings, load_vlm
from densevlm_mm.vlm.region_pooling import pad_regions, pool_boxes, pool_masks
from densevlm_mm.vlm.text_embeddings import compute_class_embeddings

from .vlm_model import VLMModel, freeze_for_evaluation

_CROPS_AT_ONCE = 64  # through the image tower; a batch of images may have hundreds


class RegionModel(VLMModel):
    """Base of all models here that are evaluated on regions.

    Args:
        vlm: See `VLMModel`.
        eval_vocabulary: Classes of the evaluation set in the order of its labels; anything that `build_vocabulary`
            takes. None for a model that is only trained.
        eval_templates: Prompt templates of these classes.
        data_preprocessor: See `VLMModel`.
    """

    def __init__(
        self,
        vlm: VLM,
        *,
        eval_vocabulary: Any = None,
        eval_templates: str | Sequence[str] = 'vild',
        data_preprocessor: Mapping | None = None,
    ) -> None:
        super().__init__(vlm, data_preprocessor=data_preprocessor)
        self.eval_vocabulary = None if eval_vocabulary is None else build_vocabulary(eval_vocabulary)
        self.eval_templates = eval_templates
        self._eval_text: Tensor | None = None

    def load_weights(self, path: str | Path) -> None:
        """Load a checkpoint as `VLMModel` does; class embeddings are made anew."""
        super().load_weights(path)
        self._eval_text = None

    def train(self, mode: bool = True) -> RegionModel:
        """Set training mode; class embeddings are made anew after training."""
        self._eval_text = None
        return super().train(mode)

    def predict(self, inputs: Tensor, data_samples: list[BaseDataElement]) -> list[BaseDataElement]:
        """Classify the regions of each image from one dense forward pass.

        Args:
            inputs: ``(B, 3, H, W)``, normalised.
            data_samples: ``gt_regions`` holds ``boxes`` (N, 4) in 0..1 and ``masks`` (N, h, w) on the token grid. With
                ``crops`` too, (N, 3, S, S) uint8, these go through the image tower one by one, as whole images.

        Returns:
            The samples with ``pred_regions``: ``box_logits``, ``mask_logits`` and, of crops, ``crop_logits``, cosines
            ``(N, K)`` with the classes of `eval_vocabulary`, whose names become the samples' meta information
            ``vocabulary``.
        """
        dense = self.vlm.encode_dense(inputs)
        texts = self.eval_text()
        regions = [sample.gt_regions for sample in data_samples]
        boxes, _ = pad_regions([r.boxes for r in regions])
        masks, _ = pad_regions([r.masks for r in regions])
        box_logits = cosines(pool_boxes(dense, boxes.to(dense.device)), texts)
        mask_logits = cosines(pool_masks(dense, masks.to(dense.device)), texts)
        for sample, boxed, masked in zip(data_samples, box_logits, mask_logits, strict=True):
            count = len(sample.gt_regions.boxes)
            sample.set_metainfo({'vocabulary': self.eval_vocabulary.names})
            sample.pred_regions = InstanceData(box_logits=boxed[:count], mask_logits=masked[:count])
        if all('crops' in r for r in regions):
            crop_logits = cosines(self.encode_crops([r.crops for r in regions]), texts)
            for sample, cropped in zip(data_samples, crop_logits.split([len(r) for r in regions]), strict=True):
                sample.pred_regions.crop_logits = cropped
        return data_samples

    def encode_crops(self, crops: Sequence[Tensor]) -> Tensor:
        """Image embeddings ``(sum N_i, C)``, L2-normalised, of crops ``(N_i, 3, S, S)`` uint8 RGB per image."""
        embeddings = []
        for chunk in torch.cat(list(crops)).split(_CROPS_AT_ONCE):
            images = self.data_preprocessor({'inputs': chunk})['inputs']
            # a chunk of none is what images without regions leave
            embeddings.append(self.vlm.encode_image(images) if len(chunk) else images.new_zeros(0, self.vlm.embed_dim))
        return torch.cat(embeddings).float()

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
            texts = embed(self.vlm, self.eval_vocabulary, self.eval_templates)
            self._eval_text = F.normalize(texts.float(), dim=-1)
        return self._eval_text


def cosines(features: Tensor, texts: Tensor) -> Tensor:
    """Cosines ``(..., K)`` of features (..., C) with L2-normalised texts (K, C), in fp32 also under autocast.

    In half precision, classes of a large vocabulary would tie.
    """
    with torch.autocast(features.device.type, enabled=False):
        return F.normalize(features.float(), dim=-1) @ texts.T


@MODELS.register_module()
class RegionClassifier(RegionModel):
    """A VLM under evaluation.

    Args:
        vlm: Arguments of `load_vlm`; the checkpoint may be left out and given to ``tools/test.py``.
        eval_vocabulary: See `RegionModel`.
        eval_templates: See `RegionModel`.
        data_preprocessor: See `VLMModel`.
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
            freeze_for_evaluation(load_vlm(**vlm)),
            eval_vocabulary=eval_vocabulary,
            eval_templates=eval_templates,
            data_preprocessor=data_preprocessor,
        )
        self.adopt_mode = vlm.get('dense_mode') is None
