from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mmengine.dataset import BaseDataset
from PIL import Image
from torch.utils.data import DataLoader

from densevlm_mm.datasets import EpochSampler, TarImageDataset
from densevlm_mm.datasets.tar_image_dataset import TarItems
from densevlm_mm.datasets.tar_shards import ShardIndex, write_shards
from densevlm_mm.registry import DATASETS

NAMES = [f'{number}.png' for number in range(7)]


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """Seven images in shards of three; the shade of each is its number."""
    monkeypatch.setenv('DENSEVLM_CACHE', str(tmp_path / 'cache'))
    (tmp_path / 'images').mkdir()
    for number, name in enumerate(NAMES):
        Image.new('RGB', (20, 12), (number, 0, 0)).save(tmp_path / 'images' / name)
    write_shards(tmp_path / 'images', tmp_path / 'shards', per_shard=3)
    return tmp_path


def build(root, **options) -> TarImageDataset:
    options = {'data_root': str(root), 'data_prefix': {'img_path': 'shards'}} | options
    pipeline = [{'type': 'densevlm_mm.LoadImage'}]
    return DATASETS.build({'type': 'densevlm_mm.TarImageDataset', 'pipeline': pipeline, **options})


def shades(dataset) -> list[int]:
    return [int(dataset[index]['img'][0, 0, 0]) for index in range(len(dataset))]


def test_items_are_the_images_of_all_shards_in_order(root):
    dataset = build(root)
    assert shades(dataset) == list(range(7))
    first, last = dataset[0], dataset[6]
    assert (first['img_id'], last['img_id']) == ('sa_000000/0.png', 'sa_000002/6.png')
    assert last['img_path'] == str(root / 'shards' / 'sa_000002.tar' / '6.png') and last['sample_idx'] == 6
    assert (dataset[2, 3]['epoch'], dataset[2, 3]['img_id']) == (2, 'sa_000001/3.png') and 'epoch' not in dataset[3]
    assert dataset.get_data_info(-1)['img_id'] == 'sa_000002/6.png'
    with pytest.raises(IndexError):
        dataset.get_data_info(7)


def test_list_of_shards(root):
    (root / 'shards.txt').write_text('sa_000002.tar\n\nsa_000000.tar\r\n')
    dataset = build(root, ann_file='shards.txt')
    assert shades(dataset) == [6, 0, 1, 2]
    assert dataset.group_sizes.tolist() == [1, 3]


def test_a_subset_knows_nothing_of_earlier_ones(root):
    [shared] = BaseDataset._copy_without_annotation.__defaults__
    before = len(shared)
    subset = build(root).get_subset(3)
    assert shades(subset) == [0, 1, 2]
    assert len(shared) == before


@pytest.mark.parametrize('indices, kept', [(4, [0, 1, 2, 3]), (-2, [5, 6]), (0, []), ([6, 0, 2, 3], [6, 0, 2, 3])])
def test_subsets(root, indices, kept):
    given, taken = build(root, indices=indices), build(root).get_subset(indices)
    in_place = build(root)
    in_place.get_subset_(indices)
    assert shades(given) == shades(taken) == shades(in_place) == kept
    assert given.group_sizes.sum() == len(kept)


def test_group_sizes_of_subsets(root):
    assert build(root).group_sizes.tolist() == [3, 3, 1]
    assert build(root, indices=-5).group_sizes.tolist() == [1, 3, 1]
    assert build(root, indices=[0, 1, 3, 2]).group_sizes.tolist() == [2, 1, 1]


def test_copies_and_workers_read_the_same(root):
    dataset = build(root)
    dataset[0]
    assert shades(pickle.loads(pickle.dumps(dataset))) == list(range(7))
    loader = DataLoader(dataset, batch_size=2, num_workers=2, sampler=EpochSampler(dataset, seed=0, window=2))
    read = [int(shade) for batch in loader for shade in batch['img'][:, 0, 0, 0]]
    assert read == [index for _, index in EpochSampler(dataset, seed=0, window=2)]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=6), st.data())
def test_positions_in_arrays_are_those_of_a_list(sizes, data):
    indexes = [
        ShardIndex(
            names=np.array([f'{shard}-{i}'.encode() for i in range(size)], dtype=np.bytes_),
            offsets=np.arange(size) * 10,
            sizes=np.arange(size) + shard,
        )
        for shard, size in enumerate(sizes)
    ]
    items = TarItems([f'{shard}.tar' for shard in range(len(sizes))], indexes)
    expected = [(shard, i) for shard, size in enumerate(sizes) for i in range(size)]
    assert [item['img_path'] for item in items] == [f'{shard}.tar/{shard}-{i}' for shard, i in expected]
    assert [item['img_location'] for item in items] == [(f'{s}.tar', i * 10, i + s) for s, i in expected]
    assert items.group_sizes().tolist() == [size for size in sizes if size]
    chosen = data.draw(st.lists(st.integers(0, len(items) - 1), max_size=5)) if len(items) else []
    assert [item['img_id'] for item in items.subset(chosen)] == [items[i]['img_id'] for i in chosen]


def test_what_is_missing_is_named(root):
    with pytest.raises(FileNotFoundError, match='nowhere: no such folder'):
        build(root, data_prefix={'img_path': 'nowhere'})
    with pytest.raises(FileNotFoundError, match=r'images: no image in a .tar file'):
        build(root, data_prefix={'img_path': 'images'})
    (root / 'list.txt').write_text('gone.tar\n')
    with pytest.raises(FileNotFoundError, match=r'gone.tar'):
        build(root, ann_file='list.txt')
    (root / 'list.txt').write_text('\n')
    with pytest.raises(ValueError, match=r'list.txt: is empty'):
        build(root, ann_file='list.txt')
    dataset = build(root)
    shutil.rmtree(root / 'shards')
    with pytest.raises(FileNotFoundError, match=r'sa_000001.tar'):
        dataset[0, 4]


def test_typos_are_errors(root):
    with pytest.raises(TypeError, match='anotation_file'):
        build(root, anotation_file='shards.txt')
    with pytest.raises(ValueError, match=r"unknown keys \['img'\]"):
        build(root, data_prefix={'img': 'shards'})
