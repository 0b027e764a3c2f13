"""Label maps on disk: as few bits as there may be, whole or not at all, and not twice."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from densevlm_mm.datasets.semantic_maps import ignore_index, save_label_map


@pytest.mark.parametrize(('num_classes', 'mode', 'void'), [(255, 'L', 255), (256, 'I;16', 65535), (847, 'I;16', 65535)])
def test_a_map_comes_back(tmp_path, num_classes, mode, void):
    labels = np.array([[0, num_classes - 1, ignore_index(num_classes)]])
    assert save_label_map(tmp_path / 'new' / 'a.png', labels, num_classes=num_classes)
    image = Image.open(tmp_path / 'new' / 'a.png')
    assert image.mode == mode and np.asarray(image).tolist() == [[0, num_classes - 1, void]]


def test_a_map_that_is_there_is_left_alone(tmp_path):
    path, labels = tmp_path / 'a.png', np.array([[0, 1]])
    assert save_label_map(path, labels, num_classes=2)
    assert not save_label_map(path, labels, num_classes=2)
    assert save_label_map(path, labels, num_classes=300)  # the same values, but with other bits
    path.write_bytes(b'half of i')
    assert save_label_map(path, labels, num_classes=2)
    assert [entry.name for entry in tmp_path.iterdir()] == ['a.png']


@pytest.mark.parametrize('label', [-1, 2, 254, 256])
def test_labels_of_no_class_are_refused(tmp_path, label):
    with pytest.raises(ValueError, match=f'a.png: label {label} is none of 2 classes'):
        save_label_map(tmp_path / 'a.png', np.array([[0, label]]), num_classes=2)
    assert not list(tmp_path.iterdir())
