"""RegionCLIP's loss in CLIPSelf's experiments: binary cross-entropy over a sampled set of nouns."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce
from torch import Tensor, nn

from densevlm_mm.registry import MODELS

from .global_mean import mean_divisors


def federated_set(present: np.ndarray, num_sampled: int, generator: np.random.Generator) -> np.ndarray:
    """Classes that a batch is compared with: those present, and random others as long as there are too few.

    Args:
        present: ``(K,)`` bool, classes that some region of the batch has.
        num_sampled: Size up to which absent classes are drawn, uniformly and without replacement.
        generator: Where they are drawn from.

    Returns:
        Sorted class indices, at most ``max(num_sampled, present.sum())``.
    """
    absent = np.flatnonzero(~present)
    missing = min(max(num_sampled - int(present.sum()), 0), len(absent))
    drawn = generator.choice(absent, missing, replace=False)
    return np.sort(np.concatenate([np.flatnonzero(present), drawn]))


@MODELS.register_module()
class FederatedBCELoss(nn.Module):
    """Binary cross-entropy of each region with each class of a federated set, summed over the set, mean over regions.

    Which classes are right for a region is known of few of the thousands of nouns; comparing with a sampled set keeps
    the many others from drowning them (federated loss of Zhou et al., arXiv:2103.07461).

    In distributed training set and mean are those of the batches of all processes, so that the averaged gradient is
    that of one process with the whole batch.

    Args:
        num_sampled: Size up to which the set is filled with classes that the batch lacks.
        loss_weight: Factor on the loss.

    Raises:
        ValueError: If `num_sampled` is negative.
    """

    def __init__(self, num_sampled: int = 100, loss_weight: float = 1.0) -> None:
        super().__init__()
        if num_sampled < 0:
            raise ValueError(f'num_sampled must not be negative, got {num_sampled}')
        self.num_sampled = num_sampled
        self.loss_weight = loss_weight

    def forward(
        self, logits: Tensor, labels: Tensor, valid: Tensor | None = None, *, generator: np.random.Generator
    ) -> Tensor:
        """Loss of a batch of regions, 0 with a gradient path when it has none.

        Args:
            logits: ``(N, K)`` of all classes.
            labels: ``(N,)`` int64, in 0..K-1 where valid.
            valid: ``(N,)`` flags of the rows that are regions; None means all.
            generator: Draws the absent classes; in the same state on every process.

        Raises:
            ValueError: If a label is no class.
        """
        valid = torch.ones_like(labels, dtype=torch.bool) if valid is None else valid
        classes = self._classes(labels[valid], logits.shape[1], generator)
        with torch.autocast(logits.device.type, enabled=False):
            targets = (labels[:, None] == classes).float()
            bce = F.binary_cross_entropy_with_logits(logits[:, classes].float(), targets, reduction='none').sum(-1)
            return self.loss_weight * (bce * valid).sum() / mean_divisors(valid.sum()[None])[0]

    def _classes(self, labels: Tensor, num_classes: int, generator: np.random.Generator) -> Tensor:
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
            raise ValueError(
                f'labels lie in {int(labels.min())}..{int(labels.max())}, but there are {num_classes} nouns: model and '
                'data set must read them from the same file'
            )
        present = torch.zeros(num_classes, device=labels.device).index_fill_(0, labels, 1.0)
        all_reduce(present)
        classes = federated_set(present.cpu().numpy() > 0, self.num_sampled, generator)
        return torch.from_numpy(classes).to(labels.device)
