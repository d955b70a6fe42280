"""What a short measurement found out about this machine, kept for it."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from sims.config import read_as
from sims.errors import UserError
from sims.files import write_json


def cache_folder() -> Path:
    """The folder of the environment variable SIMS_CACHE, else `sims` in XDG_CACHE_HOME, else ~/.cache/sims."""
    if own := os.environ.get("SIMS_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "sims"


def kept(what: str, measure: Callable[[], float]) -> float:
    """The number measured on this processor, with this torch and as many threads; else ``measure()``, which is kept.

    It lies in the cache (``arithmetic.json``), so that every process of a machine computes alike.
    """
    file = cache_folder() / "arithmetic.json"
    key = f"{what}{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    known = _known(file)
    if key not in known:
        known[key] = round(measure(), 2)
        with suppress(OSError):  # then it is measured again
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, known)
    return known[key]


def processor() -> str:
    """The processor, and the instructions that torch uses of it."""
    with suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if found:
            return f"{found[1].strip()} ({torch.backends.cpu.get_cpu_capability()})"
    return f"{platform.machine()} {platform.processor()}".strip()


def _known(file: Path) -> dict[str, float]:
    try:
        return read_as(file, dict[str, float])
    except UserError:
        return {}
