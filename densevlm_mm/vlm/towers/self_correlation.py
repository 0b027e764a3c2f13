"""Attention of features to themselves, which keeps dense features local where query-key attention does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# DeCLIP's modes as sums of attention maps; within one, the correlations of its letters are averaged, then softmaxed.
SELF_CORRELATIONS: dict[str, tuple[str, ...]] = {
    'qq': ('q',),
    'kk': ('k',),
    'vv': ('v',),
    'csa': ('q', 'k'),
    'all': ('qkv',),
}


def self_correlation(heads: Mapping[str, Tensor], maps: Sequence[str], scale: float) -> Tensor:
    """Values mixed by a sum of self-attention maps.

    Args:
        heads: ``(B, heads, L, head_dim)`` each of 'q', 'k' and 'v', as far as needed.
        maps: Attention maps by the letters whose correlations they average, such as ('q', 'k') for
            softmax(q q^T) + softmax(k k^T) and ('qkv',) for softmax((q q^T + k k^T + v v^T) / 3).
        scale: Factor on the correlations.

    Returns:
        ``(B, heads, L, head_dim)``.
    """
    mixed = []
    for letters in maps:
        # correlations add up when features stand side by side
        features = torch.cat([heads[letter] for letter in letters], dim=-1)
        mixed.append(F.scaled_dot_product_attention(features, features, heads['v'], scale=scale / len(letters)))
    return torch.stack(mixed).sum(0)
