"""How well every class fits every position: the cosines of dense image features and text."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cost_volume(image_features: Tensor, text_features: Tensor) -> Tensor:
    """Cosines, without a logit scale.

    Args:
        image_features: ``(B, C, h, w)``, of any length.
        text_features: ``(B, T, P, C)`` of T classes by P prompts, of any length.

    Returns:
        ``(B, T, P, h, w)`` in -1..1.
    """
    image_features, text_features = F.normalize(image_features, dim=1), F.normalize(text_features, dim=-1)
    return torch.einsum('bchw,btpc->btphw', image_features, text_features)


def strongest_classes(cost: Tensor, count: int) -> Tensor:
    """Classes that fit some position of an image best.

    Args:
        cost: ``(B, T, P, h, w)``, see `cost_volume`.
        count: How many are wanted, at most T.

    Returns:
        ``(B, count)`` class indices, ascending.
    """
    return cost.amax((2, 3, 4)).topk(count).indices.sort().values


def pick(values: Tensor, classes: Tensor) -> Tensor:
    """Entries ``(B, K, ...)`` of ``(B, T, ...)`` for K classes ``(B, K)`` of each image."""
    return values.take_along_dim(classes.reshape(*classes.shape, *[1] * (values.ndim - 2)), dim=1)
