"""MMDetection's own configs with nothing but the backbone and its channels replaced."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip('mmcv._ext', reason='the detectors need compiled operators')
pytest.importorskip('mmdet')

LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
TINY = {
    'train_cfg.max_epochs': 1,
    'default_hooks.checkpoint.save_optimizer': False,
    'train_dataloader.dataset.pipeline.2.scale': (128, 96),
    'val_dataloader.dataset.pipeline.1.scale': (128, 96),
    'test_dataloader.dataset.pipeline.1.scale': (128, 96),
    **{f'{loader}.dataset.metainfo': {'classes': ('person', 'car')} for loader in LOADERS},
}
FEW_PROPOSALS = {
    f'model.{part}.{key}': 50
    for part in ('train_cfg.rpn_proposal', 'test_cfg.rpn')
    for key in ('nms_pre', 'max_per_img')
}
TWO_STAGE = {
    **TINY,
    **FEW_PROPOSALS,
    'model.roi_head.bbox_head.num_classes': 2,
    'model.roi_head.bbox_head.fc_out_channels': 64,
}
OPTIONS = {
    'my_faster_rcnn': TWO_STAGE,
    'my_mask_rcnn': {**TWO_STAGE, 'model.roi_head.mask_head.num_classes': 2},
    # without a threshold: its first scores are all near 0.01
    'my_retinanet': {
        **TINY,
        'model.bbox_head.num_classes': 2,
        'model.test_cfg.score_thr': 0.0,
        'model.test_cfg.nms_pre': 50,
    },
    'my_faster_rcnn_finetuned': TWO_STAGE,
}


@pytest.fixture(scope='module')
def train_once(in_empty_folder, make_coco, shrink, train) -> Callable[[str], Any]:
    """Train by a config of the page, at most once."""
    make_coco()
    return cache(lambda name: train(shrink(name, OPTIONS[name]), name))


@pytest.fixture(params=['my_faster_rcnn', 'my_mask_rcnn', 'my_retinanet'])
def training(request, train_once):
    return train_once(request.param)


@pytest.fixture(scope='module')
def saved(train_once) -> Path:
    """A trained Faster R-CNN under the name that the page uses."""
    train_once('my_faster_rcnn')
    return Path('work_dirs/my_faster_rcnn/epoch_1.pth').rename('work_dirs/my_faster_rcnn/epoch_12.pth')


def test_one_training_step(training, check_training):
    assert training.runner.iter == 1
    check_training(training)


def test_validation_follows(training):
    assert 'val/coco/bbox_mAP' in training.runner.message_hub.log_scalars


def test_features_lie_under_their_anchors_and_rois(training):
    detector = training.model
    with torch.no_grad():
        sizes = [tuple(f.shape[-2:]) for f in detector.extract_feat(torch.zeros(1, 3, 96, 160))]
    heads = [head for head in (getattr(detector, n, None) for n in ('rpn_head', 'bbox_head')) if head is not None]
    assert len(heads) == 1
    anchors = heads[0].prior_generator
    assert sizes == [(-(-96 // y), -(-160 // x)) for x, y in anchors.strides]
    if hasattr(detector, 'roi_head'):
        extractor = detector.roi_head.bbox_roi_extractor
        levels = len(extractor.featmap_strides)
        assert sizes[:levels] == [(-(-96 // s), -(-160 // s)) for s in extractor.featmap_strides]


def test_trainable_blocks_get_gradients(train_once):
    training = train_once('my_faster_rcnn_finetuned')
    assert training.reached == training.trained
    blocks = {name.split('.')[4] for name in training.reached if name.startswith('backbone.tower.trunk.blocks.')}
    assert blocks == {'2', '3'}
    groups = training.runner.optim_wrapper.optimizer.param_groups
    rates = {group['initial_lr'] for group in groups}
    assert sorted(rates) == pytest.approx([0.002, 0.02])


def check_detections(scores, labels, boxes) -> None:
    """Scores fall, labels are known, boxes lie in the image."""
    scores, labels, boxes = (torch.as_tensor(values) for values in (scores, labels, boxes))
    assert 0 < len(scores) == len(labels) == len(boxes)
    assert (scores[:-1] >= scores[1:]).all()
    assert ((scores > 0) & (scores <= 1)).all()
    assert set(labels.tolist()) <= {0, 1}
    assert (boxes >= 0).all()
    assert (boxes <= torch.tensor([128, 96, 128, 96])).all()


def test_saved_detector_holds_the_tower(saved, check_saved_tower):
    check_saved_tower(saved)


def test_detector_of_the_page_predicts_without_the_towers_checkpoint(saved, in_empty_folder, page):
    names: dict = {}
    tower = in_empty_folder / 'checkpoints' / 'densevlm_vitb16.pt'
    hidden = tower.rename(tower.with_suffix('.hidden'))
    try:
        exec(page['detect.py'], names)
    finally:
        hidden.rename(tower)
    found = names['result'].pred_instances
    check_detections(found.scores, found.labels, found.bboxes)
    assert names['detector'].dataset_meta['classes'] == ('person', 'car')


def test_inferencer_of_the_page_gives_the_same(saved, page):
    names: dict = {}
    exec(page['detect.py'] + page['detect_with_inferencer.py'], names)
    (found,) = names['results']['predictions']
    check_detections(found['scores'], found['labels'], found['bboxes'])
    assert found['scores'] == pytest.approx(names['result'].pred_instances.scores.tolist(), rel=1e-5)
    assert Path('outputs/vis/image.jpg').is_file()
