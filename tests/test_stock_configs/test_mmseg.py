"""MMSegmentation's own configs with nothing but the backbone and its channels replaced."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

pytest.importorskip('mmcv._ext', reason="mmseg's models need compiled operators")
pytest.importorskip('mmseg')

TINY = {
    'train_cfg.max_iters': 1,
    'train_cfg.val_interval': 1,
    'default_hooks.checkpoint.save_optimizer': False,
    'train_dataloader.batch_size': 2,
    'train_dataloader.dataset.pipeline.2.scale': (256, 64),
    'train_dataloader.dataset.pipeline.3.crop_size': (64, 64),
    'val_dataloader.dataset.pipeline.1.scale': (256, 64),
    'test_dataloader.dataset.pipeline.1.scale': (256, 64),
    'test_pipeline.1.scale': (256, 64),
    'model.data_preprocessor.size': (64, 64),
    'model.decode_head.channels': 64,
    'model.auxiliary_head.channels': 64,
}
# what the page says about training without a GPU
WITHOUT_SYNC = {f'model.{head}.norm_cfg.type': 'BN' for head in ('decode_head', 'auxiliary_head')}


@pytest.fixture(scope='module')
def tiny_config(in_empty_folder, make_ade20k, shrink) -> Callable[[str], Config]:
    make_ade20k()

    def make(name: str) -> Config:
        config = shrink(name, TINY)
        assert config.model.decode_head.norm_cfg.type == 'SyncBN'
        config.merge_from_dict(WITHOUT_SYNC)
        return config

    return make


@pytest.fixture(scope='module')
def train_once(tiny_config, train) -> Callable[[str], Any]:
    """Train by a config of the page, at most once."""
    return cache(lambda name: train(tiny_config(name), name))


@pytest.fixture(params=['my_upernet', 'my_fcn'])
def training(request, train_once):
    return train_once(request.param)


@pytest.fixture(scope='module')
def saved(train_once) -> Path:
    """A trained UPerNet under the name that the page uses."""
    train_once('my_upernet')
    return Path('work_dirs/my_upernet/iter_1.pth').rename('work_dirs/my_upernet/iter_80000.pth')


def test_one_training_step(training, check_training):
    assert training.runner.iter == 1
    check_training(training)
    assert 'train/aux.loss_ce' in training.runner.message_hub.log_scalars


def test_validation_follows(training):
    assert 'val/mIoU' in training.runner.message_hub.log_scalars


def test_heads_take_the_levels_that_they_expect(training):
    segmentor = training.model
    with torch.no_grad():
        features = segmentor.extract_feat(torch.zeros(1, 3, 70, 96))
    strides = (4, 8, 16, 32) if segmentor.decode_head.in_index == [0, 1, 2, 3] else (4, 8, 8, 8)
    assert [f.shape[-2:] for f in features] == [(-(-70 // s), -(-96 // s)) for s in strides]
    for head in (segmentor.decode_head, segmentor.auxiliary_head):
        indices = head.in_index if isinstance(head.in_index, (list, tuple)) else [head.in_index]
        channels = head.in_channels if isinstance(head.in_channels, (list, tuple)) else [head.in_channels]
        assert [features[i].shape[1] for i in indices] == list(channels)


def test_forgotten_pretrained_is_explained(tiny_config):
    from mmseg.registry import MODELS

    model = tiny_config('my_fcn').model
    model.pretrained = 'open-mmlab://resnet50_v1c'
    with pytest.raises(ValueError, match=r'model\.pretrained=None'):
        MODELS.build(model)


def check_labels(labels) -> None:
    labels = np.asarray(labels).squeeze()
    assert labels.shape == (96, 128)
    assert ((labels >= 0) & (labels < 150)).all()


def test_saved_segmentor_holds_the_tower(saved, check_saved_tower):
    check_saved_tower(saved)


def test_segmentor_of_the_page_predicts_without_the_towers_checkpoint(saved, in_empty_folder, page):
    names: dict = {}
    tower = in_empty_folder / 'checkpoints' / 'densevlm_vitb16.pt'
    hidden = tower.rename(tower.with_suffix('.hidden'))
    try:
        exec(page['segment.py'], names)
    finally:
        hidden.rename(tower)
    check_labels(names['result'].pred_sem_seg.data)
    assert len(names['segmentor'].dataset_meta['classes']) == 150


def test_inferencer_of_the_page_gives_the_same(saved, page):
    names: dict = {}
    exec(page['segment.py'] + page['segment_with_inferencer.py'], names)
    labels = np.asarray(names['results']['predictions'])
    check_labels(labels)
    assert np.array_equal(labels, names['result'].pred_sem_seg.data.numpy().squeeze())
    (drawn,) = Path('outputs/vis').iterdir()
    assert Image.open(drawn).size == (128, 96)
    (written,) = Path('outputs/pred').iterdir()
    check_labels(Image.open(written))
