"""Losses of two processes are, after DDP's averaging, those of one process with the whole batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from densevlm_mm.models import CosineLoss, FederatedBCELoss
from densevlm_mm.models.losses.global_mean import mean_divisors

RANK = """
import sys
import torch
import torch.distributed as dist
_, tests, store, rank = sys.argv
sys.path.insert(0, tests)
from test_global_mean import gradients, split_batches
whole = [gradients(torch.arange(8)) for _ in split_batches()]
dist.init_process_group('gloo', init_method=f'file://{store}/store', rank=int(rank), world_size=2)
parts = [gradients(rows[int(rank)]) for rows in split_batches()]
for expected, part in zip(whole, parts):
    dist.all_reduce(part)
    torch.testing.assert_close(part / 2, expected, rtol=1e-5, atol=1e-6)
dist.destroy_process_group()
"""


def gradients(rows: Tensor) -> Tensor:
    """Gradients of both losses for weights that all of eight regions share; classes 0 to 3 are on some rank only."""
    generator = torch.Generator().manual_seed(0)
    features, targets = (torch.randn(8, 5, generator=generator) for _ in range(2))
    labels, texts = torch.arange(8) // 2, torch.randn(20, 5, generator=generator)
    weight = torch.eye(5, requires_grad=True)
    CosineLoss()(features[rows] @ weight, targets[rows]).backward()
    nouns = torch.eye(5, requires_grad=True)
    # six classes: the four of the whole batch, and two that both ranks must draw alike
    FederatedBCELoss(6)(
        features[rows] @ nouns @ texts.T, labels[rows], generator=np.random.default_rng((0, 7))
    ).backward()
    return torch.stack([weight.grad, nouns.grad])


def split_batches() -> list[tuple[Tensor, Tensor]]:
    """Rows of each rank: equally many, and almost all on one."""
    return [(torch.arange(8)[:4], torch.arange(8)[4:]), (torch.arange(8)[:1], torch.arange(8)[1:])]


def test_gradient_averaged_over_processes_is_that_of_the_whole_batch(tmp_path):
    command = [sys.executable, '-c', RANK, str(Path(__file__).parent), str(tmp_path)]
    environment = os.environ | {'PYTHONPATH': os.pathsep.join(sys.path), 'OMP_NUM_THREADS': '1'}
    ranks = [
        subprocess.Popen([*command, str(rank)], env=environment, stderr=subprocess.PIPE, text=True) for rank in range(2)
    ]
    errors = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], errors


def test_one_process_divides_by_its_own_rows():
    assert mean_divisors(torch.tensor([3, 0])).tolist() == [3.0, 1.0]
