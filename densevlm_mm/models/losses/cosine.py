"""CLIPSelf's loss: regions point where the embeddings of their crops do."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densevlm_mm.registry import MODELS

from .global_mean import mean_divisors


@MODELS.register_module()
class CosineLoss(nn.Module):
    """One minus the mean cosine between two features of a region (CLIPSelf, ICLR 2024, arXiv:2310.01403, equation 1).

    In distributed training the mean runs over the regions of all processes.

    Args:
        loss_weight: Factor on the loss.
    """

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.loss_weight = loss_weight

    def forward(self, features: Tensor, targets: Tensor, valid: Tensor | None = None) -> Tensor:
        """Loss of a batch of regions, 0 with a gradient path when it has none.

        Args:
            features: ``(N, C)`` region features, of any length.
            targets: ``(N, C)``, what they are to point at; no gradient goes there.
            valid: ``(N,)`` flags of the rows that are regions; None means all.

        Raises:
            ValueError: If the shapes differ.
        """
        if features.shape != targets.shape:
            raise ValueError(
                f'features are {tuple(features.shape)} but their targets {tuple(targets.shape)}: student and teacher '
                'must embed the same regions in spaces of the same width'
            )
        with torch.autocast(features.device.type, enabled=False):
            cosines = (F.normalize(features.float(), dim=-1) * F.normalize(targets.detach().float(), dim=-1)).sum(-1)
            valid = torch.ones_like(cosines, dtype=torch.bool) if valid is None else valid
            return self.loss_weight * ((1 - cosines) * valid).sum() / mean_divisors(valid.sum()[None])[0]
