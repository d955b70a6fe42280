"""Seeds: ranges that never meet, so that what selects a model and what judges it share no random number."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

from sims.errors import UserError

Purpose = Literal["evaluation", "selection", "synthesis", "distillation", "pilot", "figures"]

_STARTS: dict[str, int] = {
    "evaluation": 0,
    "selection": 700_000_000,
    "synthesis": 1_400_000_000,
    "distillation": 2_100_000_000,
    "pilot": 2_800_000_000,
    "figures": 3_500_000_000,
}
_ROOM = 700_000_000
MOST_SAMPLES = 100_000_000  # of one purpose: ranges of seeds must not meet
NUM_SEEDS = 2**32  # torch's CPU generator uses only the lower 32 bits: larger seeds would repeat samples silently


def seed_range(purpose: Purpose, seed: int, count: int, round_: int = 0) -> range:
    """The sample seeds of one purpose in the run with this ``seed``; another seed or round shifts the range."""
    key = hashlib.sha256(f"{seed} {round_}".encode()).digest()
    offset = int.from_bytes(key[:8], "big") % (_ROOM - MOST_SAMPLES) if seed or round_ else 0
    if not 0 < count <= MOST_SAMPLES:
        raise UserError(f"{count:,} samples: between 1 and {MOST_SAMPLES:,} are possible")
    return range(_STARTS[purpose] + offset, _STARTS[purpose] + offset + count)


def check_drawn(name: str, count: int) -> None:
    """UserError for an option that asks for more samples than there are seeds for one purpose.

    >>> check_drawn("solver.samples", 10_000)
    """
    if count > MOST_SAMPLES:
        raise UserError(f"{name} is {count:,}: at most {MOST_SAMPLES:,} samples can be drawn")


def check_seed(seed: int, name: str = "seed") -> None:
    """UserError for a seed that not every generator of random numbers takes.

    >>> check_seed(7)
    """
    if not 0 <= seed < NUM_SEEDS:
        raise UserError(f"{name} is {seed}: give a whole number from 0 to {NUM_SEEDS - 1:,}")


def derive_seed(*parts: Any) -> int:
    """A 31-bit seed that depends on all its parts: purposes never share random numbers by accident."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "big") >> 1
