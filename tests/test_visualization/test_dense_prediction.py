from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from densevlm_mm.visualization import class_colors, dense_labels, plot_dense_predictions
from densevlm_mm.vlm import load_vlm


def test_labels_are_those_of_the_nearest_text(tiny_arch):
    """Texts taken from the dense map itself: around its tokens, the pixels get those tokens' labels."""
    vlm = load_vlm(tiny_arch())
    images = torch.randn(2, 3, 32, 48)
    dense = vlm.encode_dense(images)
    texts = 3 * torch.stack([dense[0, :, 0, 0], dense[0, :, 3, 5], dense[0, :, 1, 2]])
    labels = dense_labels(vlm, images, texts)
    assert labels.shape == (2, 32, 48)
    assert (labels[0, 0, 0], labels[0, -1, -1]) == (0, 1)
    # within half a patch of a corner, enlarging cannot mix tokens
    nearest = torch.einsum('bchw,kc->bkhw', dense, F.normalize(texts, dim=-1)).argmax(1)
    for rows, cols, token in (
        (slice(4), slice(4), (0, 0)),
        (slice(-4, None), slice(4), (-1, 0)),
        (slice(4), slice(-4, None), (0, -1)),
    ):
        assert torch.equal(labels[:, rows, cols].flatten(1), nearest[:, token[0], token[1], None].expand(2, 16))
    assert torch.equal(dense_labels(vlm, images, 0.1 * texts), labels)


def test_colors_tell_classes_and_kinds_apart():
    is_thing = [True, False, True, True, False]
    colors = class_colors(is_thing)
    assert colors.shape == (5, 3)
    assert colors.min() >= 0 and colors.max() <= 1
    assert len({tuple(color) for color in colors}) == 5
    saturation = (colors.max(1) - colors.min(1)) / colors.max(1)
    assert saturation[is_thing].min() > saturation[np.logical_not(is_thing)].max()
    assert class_colors([]).shape == (0, 3)


@pytest.fixture
def picture() -> dict:
    images = [np.full((8, 12, 3), value, np.uint8) for value in (0, 255)]
    maps = {'truth': [np.zeros((8, 12), int), np.full((8, 12), -1)], 'model': [np.ones((8, 12), int)] * 2}
    return {'images': images, 'label_maps': maps, 'names': ['car', 'sky'], 'is_thing': [True, False]}


def test_picture_is_written(picture, tmp_path):
    path = tmp_path / 'new' / 'picture.png'
    plot_dense_predictions(path, **picture, title='a title')
    image = np.asarray(Image.open(path).convert('RGB')).reshape(-1, 3).astype(int)
    for color in class_colors([True, False]):
        shown = (np.abs(image - 255 * color).max(1) < 3).sum()
        assert shown > 200
    assert [file.name for file in path.parent.iterdir()] == ['picture.png']


def test_old_picture_survives_a_failure(picture, tmp_path, monkeypatch):
    path = tmp_path / 'picture.png'
    path.write_bytes(b'old')

    def fail(self, file, **kwargs) -> None:
        file.write(b'half')
        raise OSError('disk full')

    monkeypatch.setattr('matplotlib.figure.Figure.savefig', fail)
    with pytest.raises(OSError, match='disk full'):
        plot_dense_predictions(path, **picture)
    assert path.read_bytes() == b'old'
    assert list(tmp_path.iterdir()) == [path]
