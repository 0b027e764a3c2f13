"""What a measurement ran on, how fast that multiplies matrices, and how much memory something takes there."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

from densevlm_mm.vlm.towers.cpu_bfloat16 import CPU_MULTIPLIES_BFLOAT16

from .timing import TOTAL, StageClock

_STATUS = Path('/proc/self/status')
_CPUINFO = Path('/proc/cpuinfo')


def describe_machine(device: str) -> dict[str, Any]:
    """Processor, cores, threads, versions and, for a GPU, its name and CUDA."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    machine = {
        'cpu': _cpu_name(),
        'cores': cores,
        'threads': torch.get_num_threads(),
        'python': platform.python_version(),
        'torch': torch.__version__,
        'cpu_multiplies_bfloat16': CPU_MULTIPLIES_BFLOAT16,
        'float32_matmul_precision': torch.get_float32_matmul_precision(),
    }
    if is_gpu(device):
        machine |= {'gpu': torch.cuda.get_device_name(device), 'cuda': torch.version.cuda}
    return machine


def is_gpu(device: str) -> bool:
    """Whether a device is one that CUDA drives."""
    return torch.device(device).type == 'cuda'


def matmul_rate(device: str, dtype: torch.dtype, size: int) -> float:
    """FLOP/s of the fastest of five products of two ``size`` x ``size`` matrices: what the device can do at best."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    clock = StageClock(device)
    seconds = []
    for _ in range(6):  # the first one warms up
        clock.start()
        a @ b
        seconds.append(clock.stop()[TOTAL])
    return 2 * size**3 / min(seconds[1:])


def memory_in_use(device: str) -> int | None:
    """Bytes: on a GPU those of live tensors, otherwise those of this process that are resident."""
    if is_gpu(device):
        return torch.cuda.memory_allocated(device)
    return _status_bytes('VmRSS')


def peak_memory(device: str) -> int | None:
    """Most bytes that were in use since this process began, or, on a GPU, since `forget_peak_memory`.

    See `memory_in_use`; None where Linux does not tell.
    """
    if is_gpu(device):
        return torch.cuda.max_memory_allocated(device)
    return _status_bytes('VmHWM')


def forget_peak_memory(device: str) -> None:
    """On a GPU, let the peak count from here."""
    if is_gpu(device):
        torch.cuda.reset_peak_memory_stats(device)


def _status_bytes(field: str) -> int | None:
    # rather than getrusage, whose peak starts from that of the process that made this one
    if not _STATUS.exists():
        return None
    lines = dict(line.split(':', 1) for line in _STATUS.read_text().splitlines())
    return int(lines[field].split()[0]) * 1024


def _cpu_name() -> str:
    if _CPUINFO.exists():
        for line in _CPUINFO.read_text().splitlines():
            if line.startswith('model name'):
                return line.split(':', 1)[1].strip()
    return platform.processor() or platform.machine()
