from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from densevlm_mm.datasets.box_proposals import propose_boxes


def content() -> dict:
    return {
        'images': [{'id': 5, 'width': 40, 'height': 30, 'file_name': 'a'}, {'id': 2, 'width': 20, 'height': 60}],
        'annotations': [
            {'id': 1, 'image_id': 2, 'bbox': [1, 2, 3, 4], 'category_id': 7},
            {'id': 2, 'image_id': 5, 'bbox': [0, 0, 9, 9], 'category_id': 8},
        ],
        'categories': [{'id': 7, 'name': 'cat'}],
    }


def test_kept_boxes_lose_their_labels():
    found = propose_boxes(content())
    assert found == {
        'images': content()['images'],
        'annotations': [
            {'id': 1, 'image_id': 5, 'bbox': [0, 0, 9, 9]},
            {'id': 2, 'image_id': 2, 'bbox': [1, 2, 3, 4]},
        ],
    }


@given(count=st.integers(1, 20), seed=st.integers(0, 100))
def test_random_boxes_lie_in_their_image(count, seed):
    found = propose_boxes(content(), keep=False, random_boxes=count, seed=seed)['annotations']
    assert len(found) == 2 * count and [a['id'] for a in found] == list(range(1, 2 * count + 1))
    sizes = {image['id']: (image['width'], image['height']) for image in content()['images']}
    for annotation in found:
        x, y, width, height = annotation['bbox']
        limits = sizes[annotation['image_id']]
        assert x >= 0 and y >= 0 and x + width <= limits[0] + 0.01 and y + height <= limits[1] + 0.01
        assert width >= 0.15 * limits[0] - 0.01 and height >= 0.15 * limits[1] - 0.01


def test_random_boxes_depend_on_their_image_and_the_seed_only():
    whole, part = content(), content()
    del part['images'][0]
    options = {'keep': False, 'random_boxes': 3}
    boxes = [a['bbox'] for a in propose_boxes(whole, **options)['annotations'] if a['image_id'] == 2]
    assert boxes == [a['bbox'] for a in propose_boxes(part, **options)['annotations']]
    assert boxes != [a['bbox'] for a in propose_boxes(part, seed=1, **options)['annotations']]


def test_cells_of_a_grid():
    found = propose_boxes(content(), keep=False, grid=(1, 2))['annotations']
    assert [a['bbox'] for a in found] == [[0, 0, 20, 30], [20, 0, 20, 30], [0, 0, 10, 60], [10, 0, 10, 60]]


@pytest.mark.parametrize(
    ('change', 'options', 'message'),
    [
        (lambda c: None, {'keep': False}, 'no boxes are asked for'),
        (lambda c: c['annotations'][1].pop('bbox'), {}, r"annotations\[1\] has no \['bbox'\]"),
        (lambda c: c['images'][1].pop('width'), {'random_boxes': 1}, r"images\[1\] has no \['width'\]"),
        (lambda c: c.pop('annotations'), {}, 'lists no images, or no boxes of theirs'),
        (lambda c: c.pop('images'), {}, 'lists no images, or no boxes of theirs'),
    ],
)
def test_unusable_input(change, options, message):
    broken = content()
    change(broken)
    with pytest.raises(ValueError, match=message):
        propose_boxes(broken, **options)


def test_images_may_have_names_instead_of_numbers():
    content = {'images': [{'id': 'ADE_val_1', 'width': 40, 'height': 30}]}
    assert len(propose_boxes(content, keep=False, grid=(2, 2))['annotations']) == 4
    first, second = (propose_boxes(content, keep=False, random_boxes=3)['annotations'] for _ in range(2))
    assert first == second and len(first) == 3
