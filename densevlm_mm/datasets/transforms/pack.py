"""From the pipeline's dict to what the models take."""

from __future__ import annotations

import hashlib

import torch
from mmcv.transforms import BaseTransform
from mmengine.structures import BaseDataElement
from torch import Tensor

from densevlm_mm.registry import TRANSFORMS


@TRANSFORMS.register_module()
class PackRegions(BaseTransform):
    """Pack an item as ``dict(inputs, data_samples)``.

    ``inputs`` is ``(3, H, W)`` uint8 RGB: normalisation belongs to the data preprocessor, on the device. The
    data sample holds ``gt_regions`` and ``caption``, where the pipeline made any, and the meta information
    ``img_path``, ``img_id``, ``ori_shape``, ``img_shape``, ``scale``, where regions are a grid's ``grid`` and
    ``cells``, and, where images are bad, ``replaced`` and ``converted``. ``crops`` become a field of ``gt_regions``.

    Args:
        fingerprint: Add the meta information ``fingerprint``, by which `TeacherCache` knows an input again, see
            :func:`fingerprint_of`.
    """

    meta_keys = (
        'img_path', 'img_id', 'ori_shape', 'img_shape', 'scale', 'grid', 'cells', 'replaced', 'converted',
    )  # fmt: skip

    def __init__(self, *, fingerprint: bool = False) -> None:
        self.fingerprint = fingerprint

    def transform(self, results: dict) -> dict:
        """Pack the item."""
        inputs = torch.from_numpy(results['img']).permute(2, 0, 1).contiguous()
        metainfo = {key: results[key] for key in self.meta_keys if key in results}
        if self.fingerprint:
            metainfo['fingerprint'] = fingerprint_of(inputs, results['ori_shape'], results['scale'])
        data_sample = BaseDataElement(metainfo=metainfo)
        for field in ('gt_regions', 'caption'):
            if field in results:
                setattr(data_sample, field, results[field])
        if 'crops' in results:
            data_sample.gt_regions.crops = results['crops']
        return {'inputs': inputs, 'data_samples': data_sample}


def fingerprint_of(inputs: Tensor, ori_shape: tuple[int, int], scale: float) -> str:
    """Digest of what a model sees, and of where a grid's boxes lie in it.

    The pixels stand for the file and all that was done to it. They do not tell the size that the image had: black ones
    of any size look the same once they are padded.

    Args:
        inputs: ``(3, H, W)`` uint8, contiguous.
        ori_shape: ``(height, width)`` in px of the original image.
        scale: Factor from there to the input.

    Returns:
        32 hexadecimal digits.
    """
    digest = hashlib.blake2b(inputs.numpy(), digest_size=16)
    height, width = ori_shape
    digest.update(f'{tuple(inputs.shape)} {height:d} {width:d} {float(scale)!r}'.encode())
    return digest.hexdigest()
