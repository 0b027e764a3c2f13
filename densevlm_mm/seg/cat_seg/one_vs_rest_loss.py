"""Every class against all others, at every pixel."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor


def one_vs_rest_loss(
    logits: Tensor, labels: Tensor, *, ignore_index: int = 255, ignored: Literal['negative', 'skip'] = 'negative'
) -> Tensor:
    """Binary cross entropy with one-hot targets, the mean over all pixels and classes.

    Args:
        logits: ``(B, T, H, W)``.
        labels: ``(B, H, W)``, 0..T-1 or `ignore_index`.
        ignore_index: Label of pixels without a class.
        ignored: What these are: 'negative', of no class, as the released CAT-Seg trains; 'skip', without any loss. They
            count in the mean either way.

    Returns:
        A scalar, fp32.
    """
    logits, known = logits.float(), labels != ignore_index
    own = logits.gather(1, labels.where(known, 0)[:, None])[:, 0]
    # BCE(x, y) = softplus(x) - x y: needs no one-hot targets, which would be as large as the logits
    losses = F.softplus(logits).mean(1) - own.where(known, 0) / logits.shape[1]
    if ignored == 'skip':
        losses = losses.where(known, 0)
    return losses.mean()


def check_labels(labels: Tensor, num_classes: int, ignore_index: int) -> None:
    """Raise a ValueError unless every label is a class, or the ignore index, which may not be both."""
    if 0 <= ignore_index < num_classes:
        raise ValueError(
            f'ignore_index {ignore_index} is also the label of a class, of which there are {num_classes}: give the '
            'model and its data set one beyond them, such as 65535'
        )
    strange = labels[(labels != ignore_index) & ((labels < 0) | (labels >= num_classes))]
    if len(strange):
        raise ValueError(
            f'the data has label {int(strange[0])}, but the vocabulary has classes 0..{num_classes - 1} and '
            f'ignore_index is {ignore_index}: give the model the vocabulary of its training data'
        )
