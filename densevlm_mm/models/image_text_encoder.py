"""Whole images and their captions in one space: the model that `CaptionRetrieval` evaluates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from mmengine.structures import BaseDataElement
from torch import Tensor

from densevlm_mm.registry import MODELS
from densevlm_mm.vlm import load_vlm

from .vlm_model import VLMModel, freeze_for_evaluation


@MODELS.register_module()
class ImageTextEncoder(VLMModel):
    """A VLM under evaluation at what it was pre-trained for.

    Args:
        vlm: Arguments of `load_vlm`; the checkpoint may be left out and given to ``tools/test.py``.
        data_preprocessor: See `VLMModel`.
    """

    def __init__(self, *, vlm: Mapping[str, Any], data_preprocessor: Mapping | None = None) -> None:
        super().__init__(freeze_for_evaluation(load_vlm(**vlm)), data_preprocessor=data_preprocessor)
        self.adopt_mode = vlm.get('dense_mode') is None

    def predict(self, inputs: Tensor, data_samples: list[BaseDataElement]) -> list[BaseDataElement]:
        """Embed images and captions.

        Args:
            inputs: ``(B, 3, H, W)``, normalised.
            data_samples: ``captions`` is a list of at least one text. They are encoded as they are, without a prompt;
                CLIP's tokenizer cuts what does not fit its context.

        Returns:
            The samples with ``image_embedding`` ``(C,)`` and ``text_embeddings`` ``(n, C)`` of their n captions,
            L2-normalised, fp32.
        """
        captions = [sample.captions for sample in data_samples]
        tokens = self.vlm.tokenize([text for texts in captions for text in texts])
        # normalised in fp32, whatever the towers' precision is
        texts = F.normalize(self.vlm.encode_text(tokens, normalize=False).float(), dim=-1)
        images = F.normalize(self.vlm.encode_image(inputs, normalize=False).float(), dim=-1)
        texts = texts.split([len(texts) for texts in captions])
        for sample, image, text in zip(data_samples, images, texts, strict=True):
            sample.image_embedding, sample.text_embeddings = image, text
        return data_samples
