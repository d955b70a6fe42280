"""Memory of large tensors is kept: counted in page faults, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import torch
from sims.allocator import keep_memory
kept = keep_memory() if sys.argv[1] == "keep" else None
tensor = torch.ones(16 << 20)  # 64 MiB
for _ in range(20):  # what is freed is a little too small for its like, until enough of it lies side by side
    tensor.clone()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    tensor.clone()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*words: str, **environment: str) -> tuple[str, int]:
    bare = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", FAULTS, *words]
    done = subprocess.run(command, env={**bare, **environment}, capture_output=True, text=True, check=True)
    kept, count = done.stdout.split()
    return kept, int(count)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc")
def test_large_tensors_are_not_fetched_anew() -> None:
    if faults("keep")[0] == "False":
        pytest.skip("no glibc")
    _, without = faults("leave")
    kept, count = faults("keep")
    assert kept == "True" and count < without / 4, (count, without)


def test_what_the_environment_says_stays() -> None:
    kept, _ = faults("keep", MALLOC_TRIM_THRESHOLD_="1000000")
    assert kept == "False"
