"""What all models here that hold a two-tower model share: normalisation, weights, mmengine's entry point."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from torch import Tensor

from densevlm_mm.vlm import VLM
from densevlm_mm.vlm.checkpoints import load_checkpoint
from densevlm_mm.vlm.towers import VisionTower


class VLMModel(BaseModel):
    """Base of all models here that hold a `VLM`.

    Args:
        vlm: The model that is evaluated, and whatever a subclass does with it.
        data_preprocessor: Config of the preprocessor; images enter `forward` normalised. None normalises uint8 RGB with
            the mean and standard deviation that the vision tower was trained with.

    Attributes:
        adopt_mode: Whether `load_weights` switches to the dense mode that a checkpoint was trained in, rather than warn
            of another one. So it should be where the config names none.
    """

    adopt_mode = False

    def __init__(self, vlm: VLM, *, data_preprocessor: Mapping | None = None) -> None:
        super().__init__(data_preprocessor=data_preprocessor or normalization_of(vlm.visual))
        self.vlm = vlm
        self._normalizes_for_tower = not data_preprocessor

    @property
    def pixels(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation, of pixels in 0..1, by which images enter `forward`."""
        if self._normalizes_for_tower:
            return self.vlm.visual.mean, self.vlm.visual.std
        preprocessor = self.data_preprocessor
        if not getattr(preprocessor, '_enable_normalize', False):
            return (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)
        mean, std = (tuple((values.flatten() / 255).tolist()) for values in (preprocessor.mean, preprocessor.std))
        return mean, std

    def load_weights(self, path: str | Path) -> None:
        """Load a checkpoint of any supported format into the evaluated model, strictly.

        Raises:
            CheckpointError: See `densevlm_mm.vlm.checkpoints.load_checkpoint`.
        """
        load_checkpoint(self.vlm, path, adopt_mode=self.adopt_mode)
        if self._normalizes_for_tower:  # the file may say by which mean and standard deviation
            preprocessor = MODELS.build(normalization_of(self.vlm.visual))
            self.data_preprocessor = preprocessor.to(self.data_preprocessor.device)

    def forward(
        self, inputs: Tensor, data_samples: list[BaseDataElement] | None = None, mode: str = 'tensor'
    ) -> dict[str, Tensor] | list[BaseDataElement] | Tensor:
        """mmengine's entry point.

        Args:
            inputs: ``(B, 3, H, W)``, normalised.
            data_samples: One per image, with what `loss` and `predict` need.
            mode: 'loss' gives a dict of losses, 'predict' the samples with predictions, 'tensor' the L2-normalised
                dense features ``(B, C, h, w)``.
        """
        if mode == 'loss':
            return self.loss(inputs, data_samples)
        if mode == 'predict':
            return self.predict(inputs, data_samples)
        if mode == 'tensor':
            return self.vlm.encode_dense(inputs)
        raise ValueError(f"mode must be 'loss', 'predict' or 'tensor', got {mode!r}")

    def loss(self, inputs: Tensor, data_samples: list[BaseDataElement]) -> dict[str, Tensor]:
        """Losses of a batch."""
        raise NotImplementedError(f'{type(self).__name__} is for evaluation and has no loss')

    def predict(self, inputs: Tensor, data_samples: list[BaseDataElement]) -> list[BaseDataElement]:
        """The samples of a batch with predictions."""
        raise NotImplementedError


def normalization_of(tower: VisionTower) -> dict[str, Any]:
    """Config of the preprocessor that makes uint8 RGB images what a tower expects."""
    mean, std = ([255 * value for value in values] for values in (tower.mean, tower.std))
    return {'type': 'densevlm_mm.VLMPreprocessor', 'mean': mean, 'std': std, 'non_blocking': True}


def freeze_for_evaluation(vlm: VLM) -> VLM:
    """Freeze every weight but the logit scale: DistributedDataParallel refuses a model with nothing to train."""
    vlm.requires_grad_(False)
    vlm.logit_scale.requires_grad_(True)
    return vlm
