from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from densevlm_mm.datasets import BoxDataset
from densevlm_mm.datasets.box_proposals import propose_boxes
from densevlm_mm.datasets.pseudo_labels import CropLabeler, label_boxes, read_nouns
from densevlm_mm.datasets.transforms import LoadImage, crop_image
from densevlm_mm.vlm import class_embeddings, load_vlm

NOUNS = ('car', 'tree', 'sky')
TEMPLATES = ['a photo of a {}.']


@pytest.fixture(scope='module')
def labeler(tiny_arch) -> CropLabeler:
    torch.manual_seed(0)
    return CropLabeler(load_vlm(tiny_arch()), NOUNS, templates=TEMPLATES, enlarge=1.5, batch_size=3)


@pytest.fixture
def proposals(miniworld) -> dict:
    content = json.loads((miniworld / 'annotations' / 'instances_train2017.json').read_text())
    content['images'] = content['images'][:4]
    known = {image['id'] for image in content['images']}
    content['annotations'] = [a for a in content['annotations'] if a['image_id'] in known]
    return propose_boxes(content, random_boxes=2)


def test_label_is_the_noun_that_the_clip_finds_likeliest(labeler):
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    boxes = torch.tensor([[10.0, 10, 30, 20], [0, 0, 60, 40], [5, 5, 9, 9], [20, 0, 60, 30]])
    labels, scores = labeler(image, boxes)
    crops = [
        crop_image(image, box, 32) for box in ((5, 7.5, 35, 22.5), (0, 0, 60, 40), (4, 4, 10, 10), (10, 0, 60, 37.5))
    ]
    pixels = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2) / 255
    vlm = labeler.vlm
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (vlm.visual.mean, vlm.visual.std))
    texts = class_embeddings(vlm, NOUNS, TEMPLATES, normalize=True)
    expected = (vlm.logit_scale.exp() * vlm.encode_image((pixels - mean) / std) @ texts.T).softmax(-1)
    assert labels == expected.argmax(-1).tolist()
    np.testing.assert_allclose(scores, expected.amax(-1).tolist(), rtol=1e-4)


def test_file_is_one_of_labelled_boxes(labeler, proposals, miniworld, tmp_path):
    seen = []
    label_boxes(
        proposals, miniworld / 'train2017', labeler, tmp_path / 'pseudo.json', progress=lambda *p: seen.append(p)
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [path.name for path in tmp_path.iterdir()] == ['pseudo.json']
    content = json.loads((tmp_path / 'pseudo.json').read_text())
    assert content['categories'] == [{'id': i + 1, 'name': name} for i, name in enumerate(NOUNS)]
    dataset = BoxDataset(ann_file=str(tmp_path / 'pseudo.json'), data_prefix={'img_path': str(miniworld / 'train2017')})
    assert len(dataset) == 4
    for item in (dataset[i] for i in range(4)):
        labels, scores = labeler(LoadImage()(item)['img'], torch.from_numpy(item['ann_boxes']))
        assert item['ann_labels'].tolist() == labels
        stored = [a['score'] for a in content['annotations'] if a['image_id'] == item['img_id']]
        np.testing.assert_allclose(stored, scores, atol=1e-4)


class Interrupted(CropLabeler):
    """Stops at the third image."""

    def __init__(self, labeler: CropLabeler) -> None:
        self.__dict__.update(labeler.__dict__)
        self.images = 0

    def __call__(self, image, boxes):
        self.images += 1
        if self.images == 3:
            raise KeyboardInterrupt
        return super().__call__(image, boxes)


@pytest.mark.parametrize('cut', [0, 5])
def test_interrupted_run_goes_on(labeler, proposals, miniworld, tmp_path, cut):
    """Also where the last line was not written to its end."""
    images, path = miniworld / 'train2017', tmp_path / 'pseudo.json'
    with pytest.raises(KeyboardInterrupt):
        label_boxes(proposals, images, Interrupted(labeler), path)
    journal = tmp_path / 'pseudo.json.partial'
    assert not path.exists() and len(journal.read_text().splitlines()) == 3
    journal.write_bytes(journal.read_bytes()[: -cut or None])
    rest = Interrupted(labeler)
    rest.images = 10
    label_boxes(proposals, images, rest, path)
    assert rest.images - 10 == (2 if cut == 0 else 3)
    assert not journal.exists()
    label_boxes(proposals, images, labeler, tmp_path / 'whole.json')
    assert path.read_bytes() == (tmp_path / 'whole.json').read_bytes()


def test_journal_of_another_run_is_not_mixed_in(labeler, proposals, miniworld, tmp_path):
    path = tmp_path / 'pseudo.json'
    with pytest.raises(KeyboardInterrupt):
        label_boxes(proposals, miniworld / 'train2017', Interrupted(labeler), path)
    other = CropLabeler(labeler.vlm, NOUNS[::-1], templates=TEMPLATES, enlarge=1.5)
    with pytest.raises(ValueError, match='pseudo.json.partial holds the labels of other boxes, nouns or weights'):
        label_boxes(proposals, miniworld / 'train2017', other, path)


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_nouns_come_from_many_kinds_of_file(tmp_path):
    assert read_nouns(write(tmp_path / 'a.txt', 'car\n\n  fire hydrant \n')) == ('car', 'fire hydrant')
    assert read_nouns(write(tmp_path / 'b.json', ['car', 'tree'])) == ('car', 'tree')
    categories = [{'id': 3, 'name': 'tree'}, {'id': 1, 'name': 'car'}]
    assert read_nouns(write(tmp_path / 'c.json', {'categories': categories})) == ('car', 'tree')
    captions = ['A photo of a car and a tree.', 'Tree, grass', 'the T-shirt on grass; tree']
    content = {'annotations': [{'caption': caption} for caption in captions]}
    path = write(tmp_path / 'd.json', content)
    assert read_nouns(path) == ('tree', 'grass', 'car', 't-shirt')
    assert read_nouns(path, min_count=2) == ('tree', 'grass')


def test_files_without_nouns(tmp_path):
    with pytest.raises(ValueError, match='a.txt: holds no nouns'):
        read_nouns(write(tmp_path / 'a.txt', '\n'))
    with pytest.raises(ValueError, match="b.json: lists .'car'. more than once"):
        read_nouns(write(tmp_path / 'b.json', ['car', 'car']))
    with pytest.raises(FileNotFoundError, match='gone.txt'):
        read_nouns(tmp_path / 'gone.txt')


def test_boxes_of_a_bad_image_are_left_out(labeler, proposals, miniworld, tmp_path):
    bad = proposals['images'][0]
    shutil.copytree(miniworld / 'train2017', tmp_path / 'images')
    path = tmp_path / 'images' / bad['file_name']
    path.write_bytes(path.read_bytes()[:300])
    with pytest.warns(UserWarning, match=f'{bad["file_name"]}.*its boxes are left out'):
        label_boxes(proposals, tmp_path / 'images', labeler, tmp_path / 'labels.json')
    labelled = json.loads((tmp_path / 'labels.json').read_text())['annotations']
    kept = [a for a in proposals['annotations'] if a['image_id'] != bad['id']]
    assert [a['bbox'] for a in labelled] == [a['bbox'] for a in kept]
