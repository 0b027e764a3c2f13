"""CLIPSelf: a model's regions learn from its own embeddings of their crops (Wu et al., ICLR 2024, arXiv:2310.01403)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from densevlm_mm.models.preprocessor import send
from densevlm_mm.registry import MODELS
from densevlm_mm.vlm import load_vlm
from densevlm_mm.vlm.region_pooling import pad_regions

from .base import RegionDistiller, batch_boxes
from .step_random import step_generator
from .teachers import FrozenCropTeacher


class CropDistiller(RegionDistiller):
    """A distiller whose teacher embeds the crops of the regions as images.

    Args:
        student: Arguments of `load_vlm`, and ``trainable_blocks``.
        teacher: Arguments of `load_vlm` for another teacher with the same width of its image-text space; None takes the
            student as it is before training.
        eval_vocabulary: See `RegionModel`.
        eval_templates: See `RegionModel`.
        data_preprocessor: See `RegionModel`.

    Raises:
        ValueError: If the teacher's embeddings have another width than the student's.
    """

    def __init__(
        self,
        *,
        student: Mapping[str, Any],
        teacher: Mapping[str, Any] | None = None,
        eval_vocabulary: Any = None,
        eval_templates: str | Sequence[str] = 'vild',
        data_preprocessor: Mapping | None = None,
    ) -> None:
        super().__init__(
            student=student,
            eval_vocabulary=eval_vocabulary,
            eval_templates=eval_templates,
            data_preprocessor=data_preprocessor,
        )
        tower = copy.deepcopy(self.student.visual) if teacher is None else load_vlm(**teacher).visual
        if tower.embed_dim != self.student.embed_dim:
            raise ValueError(
                f'the teacher embeds images in {tower.embed_dim} dimensions, the student in {self.student.embed_dim}; '
                'cosines between them need the same space'
            )
        self.hold_teacher(FrozenCropTeacher(tower))

    @property
    def crop_teacher(self) -> nn.Module:
        """The teacher that embeds crops."""
        return self.teacher

    def crop_embeddings(self, data_samples: list[BaseDataElement]) -> Tensor:
        """Teacher's embeddings ``(B, N, C)`` of the crops of a batch, zero-padded.

        Raises:
            ValueError: If the samples have no crops.
        """
        regions = [sample.gt_regions for sample in data_samples]
        if not all('crops' in r for r in regions):
            raise ValueError(
                "the samples have no crops: put dict(type='densevlm_mm.CropRegions', size=...) before PackRegions in "
                'the training pipeline'
            )
        crops = send(torch.cat([r.crops for r in regions]), self.student.device)
        embeddings = self.crop_teacher(crops)
        return pad_regions(embeddings.split([len(r) for r in regions]))[0]


@MODELS.register_module()
class CLIPSelf(CropDistiller):
    """Align region features of the dense map with the frozen original's image embeddings of the regions' crops.

    Args:
        student: See `CropDistiller`.
        loss: Config of the loss between a region's two features.
        teacher: See `CropDistiller`.
        multiscale: Sides in px, one of which is drawn for each step and to which its images are resized (bilinear);
            None leaves them as they come. The same on all processes and again when a run is resumed.
        seed: Seed of the sides.
        eval_vocabulary: See `RegionModel`.
        eval_templates: See `RegionModel`.
        data_preprocessor: See `RegionModel`.
    """

    def __init__(
        self,
        *,
        student: Mapping[str, Any],
        loss: Mapping[str, Any],
        teacher: Mapping[str, Any] | None = None,
        multiscale: Sequence[int] | None = None,
        seed: int = 0,
        eval_vocabulary: Any = None,
        eval_templates: str | Sequence[str] = 'vild',
        data_preprocessor: Mapping | None = None,
    ) -> None:
        super().__init__(
            student=student,
            teacher=teacher,
            eval_vocabulary=eval_vocabulary,
            eval_templates=eval_templates,
            data_preprocessor=data_preprocessor,
        )
        self.content_loss = MODELS.build(loss)
        self.multiscale = multiscale
        self.seed = seed

    def loss(self, inputs: Tensor, data_samples: list[BaseDataElement]) -> dict[str, Tensor]:
        """Alignment loss of a batch.

        Args:
            inputs: ``(B, 3, H, W)``, normalised.
            data_samples: ``gt_regions`` with ``boxes`` (N, 4), xyxy in 0..1, and ``crops`` (N, 3, S, S) of bytes.

        Returns:
            ``loss_content``, and ``num_regions`` of this process for the log.

        Raises:
            ValueError: If the samples have no crops.
        """
        boxes, valid = batch_boxes(data_samples, inputs.device)
        targets = self.crop_embeddings(data_samples)
        features = self.student_regions(self.rescale(inputs), boxes)
        loss = self.content_loss(features.flatten(0, 1), targets.flatten(0, 1), valid.flatten())
        return dict(loss_content=loss, num_regions=valid.sum().float())

    def rescale(self, inputs: Tensor) -> Tensor:
        """Images ``(B, 3, H, W)`` at this step's side, if there are several to choose from."""
        if self.multiscale is None:
            return inputs
        side = int(step_generator(self.seed).choice(self.multiscale))
        return F.interpolate(inputs, size=(side, side), mode='bilinear', align_corners=False)
