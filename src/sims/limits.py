"""What a file may make of itself: nothing that it declares is believed before it is paid for."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path

from sims.errors import UserError

ROOM = 256 << 20  # bytes that any file may unfold to
RATIO = 200  # and beyond that so many times its own size: samples do not fold into less, and bombs fold a thousandfold
_CGROUPS = (  # limit, use, and the line of memory.stat with what the system would give back: version 2, version 1
    ("memory.max", "memory.current", "inactive_file "),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file "),
)


def free_memory(root: Path = Path("/")) -> int:
    """Bytes of memory that are free on the machine, or in the container that runs here."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, StopIteration):
        lines = (root / "proc/meminfo").read_text().splitlines()
        free = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    for limit, used, reclaimable in _CGROUPS:
        with suppress(OSError, ValueError):  # ValueError: "max", no limit
            folder = root / "sys/fs/cgroup"
            room = int((folder / limit).read_text()) - int((folder / used).read_text())
            statistics = (folder / limit).with_name("memory.stat").read_text().splitlines()
            room += sum(int(line.split()[1]) for line in statistics if line.startswith(reclaimable))
            free = min(free, max(room, 0))
    return free


def cpus(root: Path = Path("/")) -> int:
    """Processors that this process may use at once: of the machine, of its affinity, of its container's share."""
    number = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    folder = root / "sys/fs/cgroup"
    shares = []
    with suppress(OSError, ValueError):  # version 2; ValueError: "max", no limit
        quota, period = (folder / "cpu.max").read_text().split()
        shares.append(int(quota) / int(period))
    with suppress(OSError, ValueError):  # version 1; -1: no limit
        quota, period = ((folder / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        shares.append(int(quota) / int(period))
    return max(1, min([number, *(math.ceil(share) for share in shares if share > 0)]))


def most(packed: int) -> int:
    """Bytes that a file of ``packed`` bytes may unfold to."""
    return max(ROOM, RATIO * packed)


def afford(what: str, size: int, packed: int) -> None:
    """UserError where a file of ``packed`` bytes declares ``size`` bytes, and honest ones or this memory hold fewer.

    >>> afford("images.npz", 10_000_000_000, 9_000_000)
    Traceback (most recent call last):
    sims.errors.UserError: images.npz declares 10 GB in 9,000,000 bytes; a file of this size holds at most 1.8 GB: ...
    """
    if size > most(packed):
        raise UserError(
            f"{what} declares {size / 1e9:.3g} GB in {packed:,} bytes; a file of this size holds at most "
            f"{most(packed) / 1e9:.3g} GB: if it is sound, save it without compression"
        )
    if size > ROOM and size > (free := free_memory()):
        raise UserError(
            f"{what} takes {size / 1e9:.3g} GB of memory, and {free / 1e9:.3g} GB are free: save it without "
            "compression, or in parts"
        )
