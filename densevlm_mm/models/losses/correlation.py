"""DeCLIP's context term: tokens resemble each other as those of a vision foundation model do."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densevlm_mm.registry import MODELS


def correlations(features: Tensor) -> Tensor:
    """Cosines ``(B, h * w, h * w)`` of all pairs of positions of maps (B, C, h, w), fp32."""
    tokens = F.normalize(features.float().flatten(2), dim=1)
    return tokens.transpose(1, 2) @ tokens


@MODELS.register_module()
class CorrelationLoss(nn.Module):
    """Mean squared difference between the self-correlations of two maps of the same grid.

    Args:
        loss_weight: Factor on the loss; 0.25 is the best of DeCLIP's ablation.
    """

    def __init__(self, loss_weight: float = 0.25) -> None:
        super().__init__()
        self.loss_weight = loss_weight

    def forward(self, features: Tensor, targets: Tensor) -> Tensor:
        """Loss of a batch.

        Args:
            features: ``(B, C, h, w)``, of any length.
            targets: ``(B, D, h, w)``; no gradient goes there.

        Raises:
            ValueError: If the grids differ.
        """
        if features.shape[-2:] != targets.shape[-2:]:
            raise ValueError(f'grids differ: {tuple(features.shape[-2:])} and {tuple(targets.shape[-2:])} tokens')
        with torch.autocast(features.device.type, enabled=False):
            return self.loss_weight * F.mse_loss(correlations(features), correlations(targets.detach()))
