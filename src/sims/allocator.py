"""Memory of large tensors, kept by the process instead of being given back and fetched anew at every operation."""

from __future__ import annotations

import ctypes
import os
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_KEPT = 2**31 - 1  # bytes: what one request or the unused end of the heap may have, as large as these numbers can be
_OWN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


@cache
def keep_memory() -> bool:
    """Ask glibc to keep what large tensors leave; whether it does.

    By itself it returns every block of 32 MiB and more to the system, which then hands out, and clears, the same pages
    again, one fault each (``benchmarks/cpu.py``: a U-Net at 64x64 pixels trains 1.3 times as fast without). The process
    in turn holds on to its peak. Nothing is changed where other C libraries are in use, or where the environment
    settles it (MALLOC_TRIM_THRESHOLD_, MALLOC_MMAP_THRESHOLD_, GLIBC_TUNABLES).
    """
    if any(name in os.environ for name in _OWN):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # no glibc
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _KEPT)) and bool(mallopt(_TRIM_THRESHOLD, _KEPT))
