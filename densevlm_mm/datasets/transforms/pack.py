"""From the pipeline's dict to what the models take."""

from __future__ import annotations

import torch
from mmcv.transforms import BaseTransform
from mmengine.structures import BaseDataElement

from densevlm_mm.registry import TRANSFORMS


@TRANSFORMS.register_module()
class PackRegions(BaseTransform):
    """Pack an item as ``dict(inputs, data_samples)``.

    ``inputs`` is ``(3, H, W)`` uint8 RGB: normalisation belongs to the data preprocessor, on the device. The
    data sample holds ``gt_regions`` and ``caption``, where the pipeline made any, and the meta information
    ``img_path``, ``img_id``, ``ori_shape``, ``img_shape``, ``scale`` and, where images are bad, ``replaced`` and
    ``converted``. ``crops`` become a field of ``gt_regions``.
    """

    meta_keys = ('img_path', 'img_id', 'ori_shape', 'img_shape', 'scale', 'replaced', 'converted')

    def transform(self, results: dict) -> dict:
        """Pack the item."""
        metainfo = {key: results[key] for key in self.meta_keys if key in results}
        data_sample = BaseDataElement(metainfo=metainfo)
        for field in ('gt_regions', 'caption'):
            if field in results:
                setattr(data_sample, field, results[field])
        if 'crops' in results:
            data_sample.gt_regions.crops = results['crops']
        inputs = torch.from_numpy(results['img']).permute(2, 0, 1).contiguous()
        return {'inputs': inputs, 'data_samples': data_sample}
