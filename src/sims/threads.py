"""The number of threads: no more than this process may use at once, and no more than help."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from statistics import median

import torch
from torch import nn

from sims.limits import cpus

ROUNDS = 7
WORTH = 1.1  # times as fast, from which on fewer threads are taken
SET = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def is_chosen() -> bool:
    """Whether the number is settled from outside, or there is nothing to choose."""
    return torch.get_num_threads() == 1 or any(os.environ.get(name) for name in SET)


def limit(most: int | None = None) -> None:
    """No more threads than ``most``, nor than processors that this process may use: containers often have a share."""
    most = min(cpus(), most or cpus())
    if torch.get_num_threads() > most and not is_chosen():
        torch.set_num_threads(most)


def fastest() -> int:
    """All threads, or half of them, or a quarter, ...: as many as are not beaten by fewer, by some tenths of a second.

    Fewer are faster where two threads share a core, where there are many for little work, and where other work takes
    part of the machine.
    """
    numbers = [torch.get_num_threads()]
    while numbers[-1] > 1:
        numbers.append(numbers[-1] // 2)
    chosen, best = numbers[0], 1.0
    for number, speed in zip(numbers, speeds(numbers)):
        if speed >= WORTH * best:
            chosen, best = number, speed
    return chosen


def speeds(numbers: Sequence[int]) -> list[float]:
    """How many times as fast as with the first number of threads a convolution trains; numbers in turn, medians."""
    before = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        module, x = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.SiLU()), torch.randn(32, 32, 28, 28)
    try:
        with torch.enable_grad():
            rows = [[_seconds(module, x, number) for number in numbers] for _ in range(ROUNDS + 1)][1:]
    finally:
        torch.set_num_threads(before)
    medians = [median(row[place] for row in rows) for place in range(len(numbers))]
    return [medians[0] / one for one in medians]


def _seconds(module: nn.Module, x: torch.Tensor, number: int) -> float:
    torch.set_num_threads(number)
    begin = time.perf_counter()
    module(x).square().mean().backward()
    return time.perf_counter() - begin
