"""Cross-entropy of a detector that knows more classes than it trains."""

from __future__ import annotations

import torch
from mmdet.models.losses import CrossEntropyLoss, accuracy
from torch import Tensor

from densevlm_mm.registry import MODELS
from densevlm_mm.vlm import Vocabulary


@MODELS.register_module()
class VocabularyCrossEntropyLoss(CrossEntropyLoss):
    """Softmax cross-entropy over the base classes and the background, as ``loss_cls`` of MMDetection's box heads.

    The logits are those of all K classes and the background. Classes that are not base are left out of the softmax, as
    if the classifier did not have them, so that training neither learns nor pushes away what it may not know. Where no
    class has a split, all train. The mean is over the regions, not over their weights.

    In evaluation the head is expected to hand over log scores, see `ScoreFusion`, instead of logits.

    Args:
        background_weight: Factor on the loss of regions that are background.
        loss_weight: Factor on the loss.

    Raises:
        ValueError: If a weight is negative.
    """

    # what MMDetection's heads ask of a loss that wants a say in their logits, scores and accuracy
    custom_cls_channels = True
    custom_activation = True
    custom_accuracy = True

    def __init__(self, background_weight: float = 1.0, loss_weight: float = 1.0) -> None:
        if min(background_weight, loss_weight) < 0:
            raise ValueError(f'weights must not be negative, got {background_weight} and {loss_weight}')
        super().__init__(loss_weight=loss_weight)
        self.background_weight = background_weight
        self.vocabulary: Vocabulary | None = None
        self.register_buffer('columns', torch.empty(0, dtype=torch.long), persistent=False)
        self.register_buffer('targets', torch.empty(0, dtype=torch.long), persistent=False)

    def set_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Train the base classes of this vocabulary from now on.

        One without base classes is fine for evaluation.
        """
        num_classes, device = len(vocabulary), self.columns.device
        trains = [part == 'base' or not any(vocabulary.split) for part in vocabulary.split]
        columns = torch.tensor([i for i in range(num_classes) if trains[i]] + [num_classes])
        # the target of classes that do not train is one too many, which cross entropy refuses on every device
        targets = torch.full((num_classes + 1,), len(columns))
        targets[columns] = torch.arange(len(columns))
        self.vocabulary = vocabulary
        self.columns, self.targets = columns.to(device), targets.to(device)
        self.class_weight = [1.0] * (len(columns) - 1) + [self.background_weight]

    def forward(
        self,
        cls_score: Tensor,
        label: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | None = None,
        reduction_override: str | None = None,
    ) -> Tensor:
        """Loss of a batch of regions.

        Args:
            cls_score: ``(N, K + 1)`` logits.
            label: ``(N,)`` int64, a base class, or K for the background.
            weight: ``(N,)`` factors.
            avg_factor: What the sum is divided by; None: N.
            reduction_override: 'none', 'mean' or 'sum'; None: 'mean'.

        Raises:
            RuntimeError: If no vocabulary was set.
            ValueError: If it has no base classes, the number of logits is not its own, or a label does not train. On a
                GPU such a label is a failed assertion of the device instead, to save a wait at every step.
        """
        if self.vocabulary is None:
            raise RuntimeError('VocabularyCrossEntropyLoss has no vocabulary yet: call set_vocabulary of the detector')
        if cls_score.shape[1] != len(self.targets):
            raise ValueError(
                f'{cls_score.shape[1]} logits, but the vocabulary has {len(self.vocabulary)} classes and a background: '
                'set the vocabulary of the whole detector, not of its parts'
            )
        if len(self.columns) == 1:
            raise ValueError('the vocabulary has no base classes to train: name them by base=[...]')
        if label.device.type == 'cpu':
            self._check_labels(label)
        logits, targets = self._training_part(cls_score, label)
        return super().forward(logits.float(), targets, weight, avg_factor, reduction_override)

    def get_cls_channels(self, num_classes: int) -> int:
        """Number of logits: one per class, and the background's."""
        return num_classes + 1

    def get_activation(self, cls_score: Tensor) -> Tensor:
        """Scores ``(N, K + 1)`` in 0..1 of log scores; unlike a softmax it keeps what their sum says."""
        return cls_score.exp()

    def get_accuracy(self, cls_score: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Percentage of regions whose label has the highest logit ``(N, K + 1)`` of those that train, for the log."""
        return {'acc': accuracy(*self._training_part(cls_score, labels))}

    def _training_part(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return logits.index_select(1, self.columns), self.targets.index_select(0, labels)

    def _check_labels(self, labels: Tensor) -> None:
        num_classes = len(self.vocabulary)
        outside = labels[(labels < 0) | (labels > num_classes)]
        if len(outside):
            raise ValueError(f'label {int(outside[0])} is none of the {num_classes} classes or their background')
        untrained = labels[self.targets[labels] == len(self.columns)]
        if len(untrained):
            index = int(untrained[0])
            raise ValueError(
                f'a box is labelled {self.vocabulary.names[index]!r} (class {index}), which is not a base class: train '
                'on annotations of base classes only, or call this class base in the vocabulary'
            )
