from __future__ import annotations

import copy
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from mmengine.runner import Runner
from PIL import Image

from densevlm_mm.datasets.tar_shards import write_shards

CHECK_IMPORTS = """
import sys
import densevlm_mm.datasets, densevlm_mm.evaluation
loaded = [name for name in sys.modules if name.startswith(('mmcv._ext', 'mmcv.ops', 'mmdet', 'mmseg'))]
sys.exit(', '.join(loaded) or None)
"""


def test_needs_no_compiled_operators():
    environment = os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)}
    command = [sys.executable, '-c', CHECK_IMPORTS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


PIPELINE = [
    {'type': 'densevlm_mm.LoadImage'},
    {'type': 'densevlm_mm.ResizeLongestPad', 'size': 32},
    {'type': 'densevlm_mm.SampleGridRegions', 'shuffle': True},
    {'type': 'densevlm_mm.PackRegions'},
]


@pytest.fixture
def image_folder(tmp_path):
    """Twelve images, one of them damaged."""
    generator = np.random.default_rng(0)
    for number in range(12):
        pixels = generator.integers(0, 256, (20 + number, 30, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f'{number:02}.png')
    (tmp_path / '07.png').write_bytes(b'damaged')
    return tmp_path


@pytest.fixture(params=['folder', 'shards'])
def source(request, image_folder) -> dict:
    """Sampler and data set, for the same images as files or in tar files."""
    sampler, dataset = {'type': 'densevlm_mm.EpochSampler'}, {'data_root': str(image_folder), 'pipeline': PIPELINE}
    if request.param == 'folder':
        return {'sampler': sampler, 'dataset': dataset | {'type': 'densevlm_mm.ImageDataset'}}
    write_shards(image_folder, image_folder / 'tar', per_shard=5)
    return {'sampler': sampler | {'window': 2}, 'dataset': dataset | {'type': 'densevlm_mm.TarImageDataset'}}


def stream(source: dict, *, workers: int, epochs: range) -> list[tuple]:
    """What a training run sees: (name, boxes, image) of every step."""
    options = {'batch_size': 4, 'num_workers': workers, 'persistent_workers': workers > 0}
    loader = Runner.build_dataloader(options | copy.deepcopy(source), seed=0)
    seen = []
    for epoch in epochs:
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            for image, sample in zip(batch['inputs'], batch['data_samples'], strict=True):
                assert image.shape == (3, 32, 32)
                seen.append((sample.img_id, sample.gt_regions.boxes, image))
    return seen


def same(first: list[tuple], second: list[tuple]) -> bool:
    return [name for name, *_ in first] == [name for name, *_ in second] and all(
        torch.equal(a, b)
        for one, other in zip(first, second, strict=True)
        for a, b in zip(one[1:], other[1:], strict=True)
    )


def test_training_stream_depends_on_neither_workers_nor_interruption(source):
    whole = stream(source, workers=0, epochs=range(3))
    assert same(stream(source, workers=2, epochs=range(3)), whole)
    assert same(stream(source, workers=0, epochs=range(2, 3)), whole[24:])
    assert not same(whole[:12], whole[12:24])
    assert not any(name.endswith('07.png') for name, *_ in whole)
