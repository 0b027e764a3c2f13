"""What becomes of memory of the host that was freed."""

from __future__ import annotations

import ctypes
import os
import platform

# Parameters of mallopt(3), by their numbers in malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_NEVER, _GIBIBYTE = 2**31 - 1, 2**30
# By which users tell the allocator the same things.
_SETTINGS = ('MALLOC_TRIM_THRESHOLD_', 'MALLOC_MMAP_THRESHOLD_', 'MALLOC_TOP_PAD_', 'GLIBC_TUNABLES')


def keep_freed_memory() -> bool:
    """Let this process keep memory that it frees, where glibc allocates it.

    Otherwise activations and gradients go back to the system in every step and come again page by page, each filled
    with zeros. The peak stays what it was, but between peaks the process is as large as at the last one. Processes
    that it forks, such as a loader's workers, do likewise. See docs/performance.md.

    Returns:
        Whether glibc was told so: not where there is another C library, and not where the environment sets this itself.
    """
    if platform.libc_ver()[0] != 'glibc' or any(name in os.environ for name in _SETTINGS):
        return False
    allocator = ctypes.CDLL(None)
    # blocks above the second go back when they are freed, whatever the first
    return bool(allocator.mallopt(_TRIM_THRESHOLD, _NEVER) and allocator.mallopt(_MMAP_THRESHOLD, _GIBIBYTE))
