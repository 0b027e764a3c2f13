"""Scores of a trained detector and a frozen VLM together."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densevlm_mm.registry import MODELS
from densevlm_mm.vlm import Vocabulary

_FLOOR = -1e4  # log of a score that is zero in every precision, but may be multiplied with 0


@MODELS.register_module()
class ScoreFusion(nn.Module):
    """Weighted geometric mean of a detector's and a VLM's class probabilities of a region, as logarithms.

    The detector is the better judge of the classes that it was trained on, the VLM of the others (F-VLM, Kuo et al.,
    arXiv:2209.15639). Class c scores ``p_detector ** (1 - w_c) * p_vlm ** w_c``.

    Args:
        alpha: Weight of the VLM for classes that are not novel, in 0..1.
        beta: Weight of the VLM for novel classes, in 0..1.
        temperature: Factor on the VLM's cosines.
        renormalize: Let the scores of a region sum to 1 again, as F-VLM does. F-ViT does not.
        background: How the background is scored: 'fused', as base classes are; 'detector', by the detector alone.
        objectness_power: Multiply all scores of a region by its objectness to this power. 0 leaves it out, as F-VLM and
            F-ViT do; DITO takes 3.

    Raises:
        ValueError: For options outside these.
    """

    def __init__(
        self,
        alpha: float,
        beta: float,
        *,
        temperature: float,
        renormalize: bool = False,
        background: Literal['fused', 'detector'] = 'fused',
        objectness_power: float = 0.0,
    ) -> None:
        super().__init__()
        for name, value in (('alpha', alpha), ('beta', beta)):
            if not 0 <= value <= 1:
                raise ValueError(f'{name} is the share of the VLM and must be in 0..1, got {value}')
        if not temperature > 0:
            raise ValueError(f'temperature must be positive, got {temperature}')
        if background not in ('fused', 'detector'):
            raise ValueError(f"background must be 'fused' or 'detector', got {background!r}")
        if not objectness_power >= 0:
            raise ValueError(f'objectness_power must not be negative, got {objectness_power}')
        self.alpha = alpha
        self.beta = beta
        self.temperature = temperature
        self.renormalize = renormalize
        self.background = background
        self.objectness_power = objectness_power
        self.register_buffer('is_novel', torch.empty(0, dtype=torch.bool), persistent=False)

    def set_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Score the classes of this vocabulary from now on, with `beta` those that it calls novel."""
        self.is_novel = torch.tensor([part == 'novel' for part in vocabulary.split], device=self.is_novel.device)

    def forward(self, logits: Tensor, cosines: Tensor | None, objectness: Tensor | None = None) -> Tensor:
        """Log scores of N regions.

        Args:
            logits: ``(N, K + 1)`` of the detector, background last.
            cosines: ``(N, K + 1)`` between the VLM's region features and the same columns. None: the detector alone.
            objectness: ``(N,)`` in 0..1; needed for an `objectness_power`.

        Returns:
            ``(N, K + 1)`` fp32, also under autocast, and never NaN.

        Raises:
            ValueError: If the shapes do not fit each other or the vocabulary, or objectness is needed and absent.
        """
        self._check(logits, cosines, objectness)
        with torch.autocast(logits.device.type, enabled=False):
            scores = _log_softmax(logits)
            if cosines is not None and (self.alpha or self.beta):
                weights = self._weights()
                scores = (1 - weights) * scores + weights * _log_softmax(self.temperature * cosines.float())
            if self.renormalize:
                scores = _log_softmax(scores)
            if self.objectness_power:
                scores = scores + self.objectness_power * objectness.float().log().clamp(min=_FLOOR)[:, None]
            return scores

    def extra_repr(self) -> str:
        """Options, for ``print(model)``."""
        return (
            f'alpha={self.alpha}, beta={self.beta}, temperature={self.temperature}, renormalize={self.renormalize}, '
            f'background={self.background!r}, objectness_power={self.objectness_power}'
        )

    def _weights(self) -> Tensor:
        """Share of the VLM per column ``(K + 1,)``."""
        of_classes = torch.where(self.is_novel, self.beta, self.alpha)
        return F.pad(of_classes, (0, 1), value=self.alpha if self.background == 'fused' else 0.0)

    def _check(self, logits: Tensor, cosines: Tensor | None, objectness: Tensor | None) -> None:
        num_classes = len(self.is_novel)
        if logits.shape[1] != num_classes + 1 and (num_classes or cosines is not None):
            raise ValueError(
                f'{logits.shape[1]} logits, but the vocabulary has {num_classes} classes and a background: set the '
                'vocabulary of the whole detector, not of its parts'
            )
        if cosines is not None and cosines.shape != logits.shape:
            raise ValueError(f'logits are {tuple(logits.shape)}, but cosines {tuple(cosines.shape)}')
        if self.objectness_power and (objectness is None or objectness.shape != logits.shape[:1]):
            raise ValueError(
                f'objectness_power={self.objectness_power} needs the objectness of each of {len(logits)} regions, got '
                f'{None if objectness is None else tuple(objectness.shape)}: set it to 0 for boxes without scores'
            )


def _log_softmax(logits: Tensor) -> Tensor:
    return F.log_softmax(logits.float(), dim=-1).clamp(min=_FLOOR)
