from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from mmengine.runner import Runner
from PIL import Image

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


@pytest.fixture
def image_folder(tmp_path):
    generator = np.random.default_rng(0)
    for number in range(12):
        pixels = generator.integers(0, 256, (20 + number, 30, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f'{number:02}.png')
    return tmp_path


def stream(folder, *, workers: int, epochs: range) -> list[tuple]:
    """What a training run sees: (image, boxes) of every step."""
    loader = Runner.build_dataloader(
        {
            'batch_size': 4,
            'num_workers': workers,
            'persistent_workers': workers > 0,
            'sampler': {'type': 'densevlm_mm.EpochSampler'},
            'dataset': {
                'type': 'densevlm_mm.ImageDataset',
                'data_root': str(folder),
                'pipeline': [
                    {'type': 'densevlm_mm.LoadImage'},
                    {'type': 'densevlm_mm.ResizeLongestPad', 'size': 32},
                    {'type': 'densevlm_mm.SampleGridRegions', 'shuffle': True},
                    {'type': 'densevlm_mm.PackRegions'},
                ],
            },
        },
        seed=0,
    )
    seen = []
    for epoch in epochs:
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            assert all(image.shape == (3, 32, 32) for image in batch['inputs'])
            seen += [(sample.img_id, sample.gt_regions.boxes) for sample in batch['data_samples']]
    return seen


def same(first: list[tuple], second: list[tuple]) -> bool:
    return [name for name, _ in first] == [name for name, _ in second] and all(
        torch.equal(a, b) for (_, a), (_, b) in zip(first, second, strict=True)
    )


def test_training_stream_depends_on_neither_workers_nor_interruption(image_folder):
    whole = stream(image_folder, workers=0, epochs=range(3))
    assert same(stream(image_folder, workers=2, epochs=range(3)), whole)
    assert same(stream(image_folder, workers=0, epochs=range(2, 3)), whole[24:])
    assert not same(whole[:12], whole[12:24])
