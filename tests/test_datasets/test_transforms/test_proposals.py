from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from densevlm_mm.datasets import LoadLabeledBoxes, SampleProposals


def results(boxes, epoch: int = 0, index: int = 0, **extra) -> dict:
    """An image of 80 x 60 px, at twice its size in a square of 160 px."""
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    shapes = {'ori_shape': (60, 80), 'img_shape': (160, 160), 'scale': 2.0, 'img_path': 'a.jpg'}
    return {'ann_boxes': boxes, 'epoch': epoch, 'sample_idx': index, **shapes, **extra}


def many(count: int) -> np.ndarray:
    return np.array([[i, 0, i + 10, 20] for i in range(count)], np.float32)


@given(count=st.integers(1, 40), max_regions=st.integers(1, 30), epoch=st.integers(0, 5), index=st.integers(0, 5))
def test_draws_without_repetition(count, max_regions, epoch, index):
    found = SampleProposals(max_regions=max_regions)(results(many(count), epoch, index))['ori_boxes']
    lefts = found[:, 0].tolist()
    assert len(lefts) == len(set(lefts)) == min(count, max_regions)
    assert set(lefts) <= set(range(count))


def test_draw_depends_on_seed_epoch_and_index_only():
    draw = SampleProposals(max_regions=5)
    first = draw(results(many(40)))['ori_boxes']
    np.random.rand()
    assert torch.equal(draw(results(many(40)))['ori_boxes'], first)
    for other in (
        draw(results(many(40), epoch=1)),
        draw(results(many(40), index=1)),
        SampleProposals(max_regions=5, seed=1)(results(many(40))),
    ):
        assert not torch.equal(other['ori_boxes'], first)


def test_boxes_are_shares_of_the_padded_input():
    found = SampleProposals()(results([[8, 6, 40, 30]]))
    torch.testing.assert_close(found['gt_regions'].boxes, torch.tensor([[0.1, 0.075, 0.5, 0.375]]))
    torch.testing.assert_close(found['ori_boxes'], torch.tensor([[8.0, 6, 40, 30]]))


def test_area_is_filtered_after_drawing():
    boxes = [[0, 0, 8, 8], [0, 0, 8, 7.9], [0, 0, 70, 60]]
    found = SampleProposals(area_range=(64, 4000))(results(boxes))
    assert found['ori_boxes'].tolist() == [boxes[0]]
    counts = {len(SampleProposals(max_regions=1)(results(boxes, epoch))['ori_boxes']) for epoch in range(20)}
    assert counts == {1}  # the fallback takes the place of a box that was drawn and dropped


def test_image_without_a_fitting_box_gives_its_corner():
    found = SampleProposals()(results([[0, 0, 2, 2]]))
    assert found['ori_boxes'].tolist() == [[0, 0, 20, 15]]
    assert found['gt_regions'].boxes.tolist() == [[0, 0, 0.25, 0.1875]]


def test_labelled_boxes_are_the_first_ones():
    labels = np.arange(30)
    found = LoadLabeledBoxes(max_regions=20)(results(many(30), ann_labels=labels))
    assert found['gt_regions'].labels.tolist() == list(range(20))
    assert found['ori_boxes'][:, 0].tolist() == list(range(20))
    assert len(LoadLabeledBoxes()(results(many(3), ann_labels=labels[:3]))['gt_regions']) == 3


def test_boxes_without_labels():
    with pytest.raises(ValueError, match='a.jpg have no labels: .*make_pseudo_labels.py labels boxes'):
        LoadLabeledBoxes()(results(many(3)))


@pytest.mark.parametrize('transform', [SampleProposals, LoadLabeledBoxes])
def test_number_must_be_positive(transform):
    with pytest.raises(ValueError, match='max_regions must be positive'):
        transform(max_regions=0)
