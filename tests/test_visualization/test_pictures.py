"""Pictures of regions, segmentations, detections, similarities and features: what is painted where."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from densevlm_mm.visualization import (
    canvas,
    class_colors,
    draw_detections,
    draw_features,
    draw_regions,
    draw_segmentation,
    draw_similarity,
    legend,
)
from densevlm_mm.visualization.features import principal_colors
from densevlm_mm.visualization.instances import Places
from densevlm_mm.visualization.regions import _text
from densevlm_mm.vlm import Vocabulary, build_vocabulary

VOCABULARY = build_vocabulary(
    {'things': ['cat', 'dog, hound', 'bus'], 'stuff': ['grass', 'a-stuff-with-an-endless-name'], 'base': ['cat']}
    | {'novel': ['dog, hound']}
)
COLORS = (255 * class_colors(VOCABULARY.is_thing)).round().astype(int)
GREY = np.array(canvas.GREY)
BOXES = np.array([[0, 0, 40, 30], [40, 0, 80, 30], [0, 30, 40, 60], [40, 30, 80, 60]], float)
FACTOR = 8  # of an 80 x 60 image


@pytest.fixture
def image() -> np.ndarray:
    """60 x 80 px, all of one colour that no class has."""
    return np.full((60, 80, 3), (30, 40, 50), np.uint8)


def count(picture: np.ndarray, color: np.ndarray, box: tuple[int, int, int, int] | None = None) -> int:
    """Pixels of this colour, give or take rounding, within xyxy of the small image."""
    if box is not None:
        left, top, right, bottom = (FACTOR * side for side in box)
        picture = picture[top:bottom, left:right]
    return int((np.abs(picture.astype(int) - color).max(-1) <= 2).sum())


def test_regions_have_the_colours_of_their_classes_and_dropped_ones_are_grey(image):
    picture = draw_regions(image, BOXES, [0, 3, 1, 2], [0.9, 0.8, 0.3, 0.1], VOCABULARY, score_thr=0.3)
    assert picture.dtype == np.uint8 and picture.shape[1] == 640 and 480 < picture.shape[0] < 540
    cells = [tuple(int(side) for side in box) for box in BOXES]
    for cell, color in zip(cells[:2], COLORS[[0, 3]], strict=True):
        assert count(picture, color, cell) > 2000
        assert count(picture, GREY, cell) < 50
    for cell, label in zip(cells[2:], (1, 2), strict=True):  # at the threshold is not above it
        assert count(picture, GREY, cell) > 1000
        assert count(picture, COLORS[label], cell) < 50
    kept = draw_regions(image, BOXES, [0, 3, 1, 2], [0.9, 0.8, 0.3, 0.0], VOCABULARY)
    assert count(kept, COLORS[2], cells[3]) > 2000
    assert np.array_equal(image, np.full((60, 80, 3), (30, 40, 50)))


def test_pictures_are_the_same_every_time(image):
    arguments = image, torch.tensor(BOXES), torch.tensor([0, 1, 2, 3]), torch.rand(4), VOCABULARY
    for draw in (draw_regions, draw_detections):
        assert np.array_equal(draw(*arguments), draw(*arguments))
    features = {'row': [torch.randn(6, 4, 5)]}
    assert np.array_equal(draw_features([image], features), draw_features([image], features))


def test_nothing_to_draw_leaves_the_image(image):
    none = np.zeros((0, 4)), np.zeros(0, int), np.zeros(0)
    for picture in (
        draw_regions(image, *none, VOCABULARY),
        draw_detections(image, *none, VOCABULARY, masks=np.zeros((0, 60, 80), bool)),
        draw_detections(image, BOXES[:1], [1], [0.29], VOCABULARY, masks=np.ones((1, 60, 80), bool)),
        draw_segmentation(image, np.full((60, 80), -1), VOCABULARY),
        draw_detections(image, [], [], [], ['cat']),
    ):
        assert count(picture, image[0, 0], (0, 0, 80, 60)) == 480 * 640
    assert draw_detections(image, [], [], [], ['cat']).shape == (480, 640, 3)  # nothing to explain


def test_segmentation_paints_classes_and_nothing_else(image):
    labels = np.full((60, 80), -1)
    labels[:20], labels[20:30], labels[50:] = 3, 0, 5
    picture = draw_segmentation(image, labels, VOCABULARY, opacity=0.25)
    assert picture.shape[0] == 480 and picture.shape[1] > 640
    for rows, label in (((0, 20), 3), ((20, 30), 0)):
        expected = 0.75 * image[0, 0] + 0.25 * COLORS[label]
        assert count(picture, expected, (0, rows[0], 80, rows[1])) == (rows[1] - rows[0]) * 80 * FACTOR**2
    assert count(picture, image[0, 0], (0, 30, 80, 60)) == 30 * 80 * FACTOR**2
    # the legend has the two, unblended
    side = picture[:, 640:]
    assert [count(side, color) > 100 for color in COLORS] == [True, False, False, True, False]
    opaque = draw_segmentation(image, torch.tensor(labels), VOCABULARY, opacity=1)
    assert count(opaque, COLORS[3], (0, 0, 80, 20)) == 20 * 80 * FACTOR**2


@pytest.fixture
def listed(monkeypatch) -> list:
    """Entries of the legends beside pictures."""
    entries = []

    def record(shown, size):
        entries.extend((entry.text, entry.value) for entry in shown)
        return legend.legend_beside(shown, size)

    monkeypatch.setattr('densevlm_mm.visualization.segmentation.legend_beside', record)
    return entries


def test_legend_lists_the_largest_classes_first(image, listed):
    labels = np.full((60, 80), 1)
    labels[:15], labels[0, 0], labels[1, :8] = 3, -1, 0
    draw_segmentation(image, labels, VOCABULARY)
    assert listed == [
        ('dog', '75.0 %'), ('grass (stuff)', '24.8 %'), ('cat', '0.2 %'), ('not painted', '< 0.1 %'),
    ]  # fmt: skip


def test_legend_of_many_classes_ends(listed):
    names = [f'class {i}' for i in range(40)]
    labels = np.repeat(np.arange(30), 20).reshape(20, 30)
    picture = draw_segmentation(np.zeros((20, 30, 3), np.uint8), labels, names)
    assert len(listed) == 21 and listed[0] == ('class 0', '3.3 %') and listed[-1] == ('+ 10 more', '33.3 %')
    assert picture.shape[0] >= 21 * 14


def test_novel_classes_are_marked(image):
    box, frame = np.array([[10, 20, 70, 50]]), (10, 30, 70, 50)  # below the name
    base, novel, neither = (draw_detections(image, box, [label], [0.9], VOCABULARY) for label in (0, 1, 2))
    counts = [count(p, COLORS[i], frame) for i, p in enumerate((base, novel, neither))]
    assert counts[1] > 1.8 * counts[0] > 0
    assert counts[2] == pytest.approx(counts[0], rel=0.1)
    # in the same colour and with the same name, the mark makes a longer label
    names = 'pea', 'nut'
    marked, plain = (
        draw_detections(image, box, [0], [0.9], Vocabulary(names, (True, True), split=split))
        for split in (('novel', 'base'), ('base', 'novel'))
    )
    color = (255 * class_colors([True, True])[0]).round()
    assert count(marked, color, (0, 0, 80, 19)) > 1.3 * count(plain, color, (0, 0, 80, 19))
    assert base.shape[0] > 480  # the legend


def test_masks_are_painted_in_the_colour_of_the_class(image):
    masks = np.zeros((2, 60, 80), bool)
    masks[0, 25:45, 20:60] = masks[1] = True
    boxes = np.array([[10, 20, 70, 50], [0, 0, 80, 60]])
    picture = draw_detections(image, boxes, [2, 0], [0.8, 0.2], VOCABULARY, masks=torch.tensor(masks))
    blended = 0.55 * image[0, 0] + 0.45 * COLORS[2]
    assert count(picture, blended, (0, 0, 80, 60)) == 20 * 40 * FACTOR**2


def test_names_stay_inside_and_apart():
    places = Places(np.zeros((100, 200, 3)))
    boxes = np.array([[0, 0, 50, 50], [150, 5, 200, 100], [150, 5, 200, 90], [5, 95, 9, 100], [0, 40, 200, 100]])
    corners = [places.take(box, (80, 12), 2) for box in boxes]
    for left, top in corners:
        assert left - 2 >= 0 and left + 82 <= 200 and top - 2 >= 0 and top + 14 <= 100
    for (a, b), (c, d) in itertools.combinations(corners, 2):
        assert abs(a - c) >= 84 or abs(b - d) >= 16


def test_texts_fit_their_regions():
    size = 14.0
    assert _text('cat', '87 %', 100, size) == 'cat 87 %'
    first, second = _text(VOCABULARY.names[4], '87 %', 100, size).split('\n')
    assert first.startswith('a-stuff') and first.endswith('…') and second == '87 %'
    assert canvas.text_size(first, size)[0] <= 100
    assert canvas.cut_text('W', 1, size) == '…'
    assert canvas.text_size('$x$', size)[0] > canvas.text_size('x', size)[0]  # no formula


def test_sizes_of_pictures():
    sides = [canvas.enlargement(np.zeros((h, w, 3))) for h, w in ((64, 64), (480, 640), (1080, 1920), (300, 20))]
    assert sides == [10, 1, 1, 3]
    assert canvas.fit_panel(np.zeros((64, 30, 3), np.uint8), 200).shape == (192, 90, 3)
    assert canvas.fit_panel(np.zeros((1080, 1920, 3), np.uint8), 640).shape == (360, 640, 3)
    for width in (300, 900):  # entries go round, but never out
        strip = legend.legend_below([legend.Entry('a rather long text of this legend', ((1, 2, 3),))] * 3, width, 14)
        assert strip.shape[1] == width and (strip[:, -2:] == 255).all()
        assert count(strip, np.array([1, 2, 3])) > 500
    assert legend.legend_below([], 50, 14).shape == (0, 50, 3)
    assert legend.legend_beside([], 14).shape[1] == 0


def test_swatches_in_pictures_without_room_for_them():
    entry = legend.Entry('car', ((1, 2, 3), (4, 5, 6)))
    for width in (1, 5, 12, 25):
        strip = legend.legend_below([entry], width, 14)
        assert strip.shape[1] == width
    assert count(strip, np.array([1, 2, 3])) > 50
    picture = draw_regions(np.zeros((640, 25, 3), np.uint8), [[0, 0, 25, 640]], [0], [0.9], ['car'], score_thr=0.3)
    assert picture.shape[1] == 25


def test_similarity_panels_share_one_scale(image):
    ramp = np.linspace(0, 1, 80 * 60).reshape(60, 80)
    low, high, whole = np.full((60, 80), 0.0), np.full((60, 80), 1.0), ramp
    picture = draw_similarity(image, np.stack([low, high, whole]), ['low', 'high', 'x$y$'])
    together = draw_similarity(image, np.stack([low + 1, high]), ['low', 'high'])
    panels = [picture[100:300, left : left + 300] for left in (50, 50 + 648)]
    assert len({tuple(panel.reshape(-1, 3).min(0)) for panel in panels}) == 2
    assert all((panel == panel[0, 0]).all() for panel in panels)
    assert (together[100:300, 50:350] == together[100:300, 698:998]).all()
    assert draw_similarity(image, torch.rand(1, 4, 5), ['query']).dtype == np.uint8
    assert draw_similarity(image, torch.rand(7, 4, 5), ['query'] * 7).shape[1] > 640


def test_features_of_a_row_share_their_colours():
    """Two kinds of tokens in other places of two images of different sizes."""
    kinds = torch.randn(2, 8)
    first = kinds[torch.tensor([[0, 0, 1], [1, 1, 1]])].permute(2, 0, 1)
    second = kinds[torch.tensor([[1, 0]])].permute(2, 0, 1)
    one, two = principal_colors([first, second])
    assert one.shape == (2, 3, 3) and two.shape == (1, 2, 3)
    assert np.array_equal(one[0, 0], two[0, 1]) and np.array_equal(one[1, 2], two[0, 0])
    assert abs(int(one[0, 0, 0]) - int(one[1, 2, 0])) == 255  # the first component tells them apart
    images = [np.zeros((20, 30, 3), np.uint8), np.full((10, 20, 3), 9, np.uint8)]
    picture = draw_features(images, {'before': [first, second], 'after': [first[:2], second[:2]]})
    assert picture.dtype == np.uint8 and picture.shape[1] == 240 + 8 + 240
    shown = picture.reshape(-1, 3)
    assert (shown == one[0, 0]).all(1).sum() > 5000 and (shown == one[1, 2]).all(1).sum() > 5000


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'image': np.zeros((4, 4))}, r'RGB, uint8 \(H, W, 3\), got float64 \(4, 4\)'),
        ({'image': Image.new('RGB', (4, 4))}, 'got Image'),
        ({'labels': [0, 1, 2, 5]}, 'run from 0 to 5, but the vocabulary has 5 classes'),
        ({'labels': [0.5] * 4}, 'integers, got float64'),
        ({'labels': [0, 1]}, r'got \(4, 4\), \(2,\), \(4,\)'),
        ({'boxes': BOXES[:, [2, 1, 0, 3]]}, 'boxes are xyxy'),
    ],
)
def test_instances_that_do_not_fit(image, change, message):
    given = {'image': image, 'boxes': BOXES, 'labels': [0, 1, 2, 3], 'scores': [0.5] * 4, 'vocabulary': VOCABULARY}
    for draw in (draw_regions, draw_detections):
        with pytest.raises(ValueError, match=message):
            draw(**given | change)


def test_maps_that_do_not_fit(image):
    with pytest.raises(ValueError, match=r'masks \(1, 60, 80\) are needed'):
        draw_detections(image, BOXES[:1], [0], [0.9], VOCABULARY, masks=np.ones((1, 6, 8), bool))
    with pytest.raises(ValueError, match='of another size than the image'):
        draw_segmentation(image, np.zeros((6, 8), int), VOCABULARY)
    with pytest.raises(ValueError, match=r'opacity must be in 0\.\.1'):
        draw_segmentation(image, np.zeros((60, 80), int), VOCABULARY, opacity=50)
    for maps, names in ((np.zeros((1, 6, 8)), ['a', 'b']), (np.zeros((0, 6, 8)), []), (np.zeros((6, 8)), ['a'] * 6)):
        with pytest.raises(ValueError, match='with one name each'):
            draw_similarity(image, maps, names)
    with pytest.raises(ValueError, match="features 'before': one"):
        draw_features([image] * 2, {'before': [torch.zeros(3, 2, 2)]})
    with pytest.raises(ValueError, match='at least one image'):
        draw_features([], {})
