"""Batches of images of different sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmseg.models import SegDataPreProcessor
from mmseg.utils import stack_batch

from densevlm_mm.registry import MODELS


@MODELS.register_module()
class MixedSizePreProcessor(SegDataPreProcessor):
    """MMSegmentation's preprocessor, whose test batches need not be images of one size.

    Smaller images are padded at the bottom and right, after they are normalised, and their samples say by how much:
    meta information ``img_padding_size``, (left, right, top, bottom) in px.

    Args are those of ``SegDataPreProcessor``.
    """

    def forward(self, data: Mapping[str, Any], training: bool = False) -> dict[str, Any]:
        """``inputs`` ``(B, 3, H, W)`` and ``data_samples`` of a batch; see the class."""
        if training or self.test_cfg:
            return super().forward(data, training)
        data = self.cast_data(data)
        singles = [SegDataPreProcessor.forward(self, {'inputs': [image]})['inputs'][0] for image in data['inputs']]
        inputs, paddings = stack_batch(singles, size_divisor=1, pad_val=self.pad_val)
        samples = data.get('data_samples')
        if samples is not None:
            for sample, padding in zip(samples, paddings, strict=True):
                sample.set_metainfo(padding)
        return {'inputs': inputs, 'data_samples': samples}
