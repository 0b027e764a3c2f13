"""What both segmentors share: labels are positions in a vocabulary, whatever MMSegmentation's own tools say of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from mmengine.structures import PixelData
from mmseg.models import BaseSegmentor
from mmseg.structures import SegDataSample
from torch import Tensor

from densevlm_mm.vlm import Vocabulary

from .class_scores import vocabulary_meta

_NO_PADDING = (0, 0, 0, 0)


class VocabularySegmentor(BaseSegmentor):
    """Gives every pixel of an image a class of its vocabulary."""

    vocabulary: Vocabulary

    @property
    def dataset_meta(self) -> dict[str, Any]:
        """What visualizers name and paint labels by, always of the vocabulary at hand.

        MMSegmentation's inferencers set it to what a checkpoint says of its training data. That is not kept: other
        classes may be asked for.
        """
        return vocabulary_meta(self.vocabulary)

    @dataset_meta.setter
    def dataset_meta(self, meta: Mapping[str, Any]) -> None: ...

    @abstractmethod
    def segment(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        """Labels ``size``, (rows, columns) in px, of one image (3, H, W), normalised."""

    def predict(self, inputs: Tensor, data_samples: list[SegDataSample] | None = None) -> list[SegDataSample]:
        """Segment a batch of images.

        Args:
            inputs: ``(B, 3, H, W)``, normalised.
            data_samples: ``ori_shape`` is the size of the result, that of the image itself if absent. Padding that the
                preprocessor noted is cut off.

        Returns:
            The samples with ``pred_sem_seg``: labels ``(1, H, W)``, positions in the vocabulary, whose names become the
            samples' meta information ``vocabulary``.
        """
        data_samples = [SegDataSample() for _ in inputs] if data_samples is None else data_samples
        for image, sample in zip(inputs, data_samples, strict=True):
            image = without_padding(image, sample.metainfo)
            labels = self.segment(image, tuple(sample.metainfo.get('ori_shape', image.shape[-2:])[:2]))
            sample.set_metainfo({'vocabulary': self.vocabulary.names})
            sample.pred_sem_seg = PixelData(data=labels[None])
        return data_samples


def without_padding(image: Tensor, meta: Mapping[str, Any]) -> Tensor:
    """An image ``(3, H, W)`` without what the preprocessor added to make a batch."""
    left, right, top, bottom = meta.get('img_padding_size', _NO_PADDING)
    height, width = image.shape[-2:]
    return image[:, top : height - bottom, left : width - right]


def refuse_arguments(**given: object) -> None:
    """Raise a ValueError if any of ``pretrained``, ``train_cfg`` and ``test_cfg`` is set.

    MMSegmentation's `init_model` hands them to every segmentor, as None; other values would be without effect.
    """
    names = [name for name, value in given.items() if value]
    if names:
        raise ValueError(
            f'{", ".join(names)} would have no effect here: weights are named by vlm=dict(checkpoint=...), and how to '
            "train and segment by the segmentor's own arguments; leave it out or None"
        )
