"""A tiny F-ViT, its CLIP and its images."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData

from densevlm_mm.registry import MODELS
from densevlm_mm.vlm import VLM

VOCABULARY = {'things': ['car', 'tree', 'star', 'boat'], 'base': ['car', 'tree', 'boat'], 'novel': ['star']}
SIZE = 64
NORM = {'type': 'BN'}
WORDS = {'templates': ['a photo of a {}'], 'background_words': ['grass', 'sky']}  # the tiny CLIP's words are few


@pytest.fixture(autouse=True)
def scope():
    """MMDetection's names are found without a prefix, as in its configs."""
    with DefaultScope.overwrite_default_scope('mmdet'):
        yield


@pytest.fixture(scope='session')
def clip(tiny_arch, tmp_path_factory) -> dict[str, Any]:
    """Arch and checkpoint of a tiny CLIP with random weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp('clip') / 'clip.pt'
    arch = tiny_arch()
    torch.save({'state_dict': VLM(arch).state_dict()}, path)
    return {'arch': arch, 'checkpoint': str(path)}


@pytest.fixture(scope='session')
def detector_config(clip) -> Callable[..., ConfigDict]:
    """Makes the config of a tiny F-ViT; ``masks`` adds a mask head."""

    def make(*, masks: bool = False, **options: Any) -> ConfigDict:
        config = {**_detector(clip), 'vocabulary': VOCABULARY, **WORDS, **options}
        if masks:
            config['roi_head'] |= _mask_branch()
        return ConfigDict(copy.deepcopy(config))

    return make


@pytest.fixture
def build(detector_config) -> Callable[..., torch.nn.Module]:
    """Builds a tiny F-ViT with initialised weights; see `detector_config`."""

    def make(**options: Any) -> torch.nn.Module:
        torch.manual_seed(0)
        detector = MODELS.build(detector_config(**options))
        detector.init_weights()
        return detector.eval()

    return make


@pytest.fixture
def samples() -> Callable[..., list[DetDataSample]]:
    """Makes one sample per list of ``(label, xyxy)``."""

    def make(*objects: list[tuple[int, list[float]]], size: tuple[int, int] = (SIZE, SIZE)) -> list[DetDataSample]:
        return [_sample(boxes, size) for boxes in objects]

    return make


def _sample(objects: list[tuple[int, list[float]]], size: tuple[int, int]) -> DetDataSample:
    sample = DetDataSample(metainfo=dict(img_shape=size, ori_shape=size, pad_shape=size, scale_factor=(1.0, 1.0)))
    sample.set_metainfo({'batch_input_shape': size})
    boxes = torch.tensor([box for _, box in objects], dtype=torch.float).reshape(-1, 4)
    masks = torch.zeros(len(objects), *size, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    sample.gt_instances = InstanceData(
        bboxes=boxes,
        labels=torch.tensor([label for label, _ in objects], dtype=torch.long),
        masks=BitmapMasks(masks.numpy(), *size),
    )
    return sample


def _detector(clip: dict[str, Any]) -> dict[str, Any]:
    return dict(
        type='densevlm_mm.FViT',
        backbone=dict(
            type='densevlm_mm.DenseVLMBackbone', **clip, out_indices=(0, 0, 1, 1), strides=None, with_dense=True
        ),
        neck=[
            dict(type='densevlm_mm.TokenPyramid', in_channels=32, norm_cfg=NORM),
            dict(type='FPN', in_channels=[32] * 4, out_channels=16, num_outs=5, norm_cfg=NORM),
        ],
        rpn_head=dict(
            type='RPNHead',
            in_channels=16,
            feat_channels=16,
            num_convs=2,
            anchor_generator=dict(type='AnchorGenerator', scales=[8], ratios=[0.5, 1, 2], strides=[2, 4, 8, 16, 32]),
            bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
            loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True),
            loss_bbox=dict(type='L1Loss'),
        ),
        roi_head=dict(
            type='densevlm_mm.FViTRoIHead',
            score_fusion=dict(type='densevlm_mm.ScoreFusion', alpha=0.1, beta=0.8, temperature=15.0),
            bbox_roi_extractor=_extractor(7),
            bbox_head=dict(
                type='ConvFCBBoxHead',
                num_shared_convs=1,
                num_shared_fcs=1,
                num_cls_fcs=1,
                num_reg_fcs=1,
                in_channels=16,
                conv_out_channels=16,
                fc_out_channels=16,
                norm_cfg=NORM,
                reg_class_agnostic=True,
                bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_stds=[0.1, 0.1, 0.2, 0.2]),
                cls_predictor_cfg=dict(type='densevlm_mm.TextEmbeddingClassifier', temperature=50.0),
                loss_cls=dict(type='densevlm_mm.VocabularyCrossEntropyLoss', background_weight=0.6),
                loss_bbox=dict(type='L1Loss'),
            ),
        ),
        train_cfg=dict(
            rpn=dict(
                assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.7, neg_iou_thr=0.3, min_pos_iou=0.3),
                sampler=dict(type='RandomSampler', num=64, pos_fraction=0.5, add_gt_as_proposals=False),
                allowed_border=-1,
                pos_weight=-1,
                debug=False,
            ),
            rpn_proposal=dict(nms_pre=100, max_per_img=50, nms=dict(type='nms', iou_threshold=0.7), min_bbox_size=0),
            rcnn=dict(
                assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0.5),
                sampler=dict(type='RandomSampler', num=32, pos_fraction=0.25, add_gt_as_proposals=True),
                mask_size=28,
                pos_weight=-1,
                debug=False,
            ),
        ),
        test_cfg=dict(
            rpn=dict(nms_pre=100, max_per_img=50, nms=dict(type='nms', iou_threshold=0.7), min_bbox_size=0),
            rcnn=dict(score_thr=0.01, nms=dict(type='nms', iou_threshold=0.4), max_per_img=20, mask_thr_binary=0.5),
        ),
        data_preprocessor=dict(type='DetDataPreprocessor', mean=[123.7] * 3, std=[58.4] * 3, pad_size_divisor=16),
    )  # fmt: skip


def _extractor(size: int) -> dict[str, Any]:
    layer = dict(type='RoIAlign', output_size=size, sampling_ratio=0)
    return dict(type='SingleRoIExtractor', roi_layer=layer, out_channels=16, featmap_strides=[2, 4, 8, 16])


def _mask_branch() -> dict[str, Any]:
    head = dict(type='FCNMaskHead', num_convs=1, in_channels=16, conv_out_channels=16, class_agnostic=True)
    loss = dict(type='CrossEntropyLoss', use_mask=True, loss_weight=1.0)
    return dict(mask_roi_extractor=_extractor(14), mask_head={**head, 'loss_mask': loss})
