"""Memory of the device: what is free, what a piece of work takes, and what to say when there is not enough."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from sims import limits

_PHRASES = ("out of memory", "can't allocate memory", "cannot allocate memory", "unable to allocate")


def free_memory(device: torch.device, root: Path = Path("/")) -> int:
    """Bytes free on a device; without memory of its own, of the machine or of the container that runs here."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return limits.free_memory(root)


class Peak:
    """The most memory that a block of work holds, beyond what was held before it: ``bytes``, after the block.

    On a GPU its tensors; else the resident memory of this process (where the system keeps only its highest value ever,
    what stays below that counts as nothing).
    """

    bytes = 0

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __enter__(self) -> Peak:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
            return self
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)  # what was freed is not held
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # forget the highest value
        self._before = resident()
        return self

    def __exit__(self, *_: Any) -> None:
        after = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else highest()
        self.bytes = max(0, after - self._before)


def resident() -> int:
    """Bytes of this process in memory now (its highest value, where the system tells no more)."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return highest()


def highest() -> int:
    """The most bytes of this process that were in memory at once."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory did not suffice, on a GPU or on the machine."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error).lower() for phrase in _PHRASES)
