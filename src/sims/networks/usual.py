"""What is usual: the network, and the length of its training, that follow from the data and the machine. One table.

Rows for large GPUs are published settings; those for less are the same networks, narrower and of fewer blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import torch

Machine = Literal["cpu", "small GPU", "large GPU"]
LARGE = 24 << 30  # bytes of a GPU's memory
TINY = 12  # pixels a side, up to which a picture is but a few numbers

EDM, ADM, EDM2 = "Karras et al. 2022, table 7", "Dhariwal and Nichol 2021, table 4", "Karras et al. 2024, table 6"
DITS = "Peebles and Xie 2023, table 1"
OWN = "measured on the digits"


@dataclass(frozen=True)
class Usual:
    """A network by its options, for data up to so many pixels a side, and the images that its training sees.

    ``attention``: for each of these sizes, the largest resolution up to it attends.
    """

    side: int
    machine: Machine
    type: str
    width: int
    blocks: int
    channel_mult: tuple[int, ...]
    attention: tuple[int, ...]
    images: int
    source: str
    patch: int = 1


MLP = Usual(TINY, "cpu", "mlp", 256, 3, (), (), 1_280_000, OWN)
PIXELS = (
    Usual(16, "cpu", "ddpmpp", 32, 1, (1, 2), (8,), 1_000_000, EDM),
    Usual(32, "cpu", "ddpmpp", 32, 1, (1, 2, 2), (8,), 1_000_000, EDM),
    Usual(64, "cpu", "ddpmpp", 32, 1, (1, 2, 2, 2), (8,), 500_000, EDM),
    Usual(128, "cpu", "ddpmpp", 32, 1, (1, 1, 2, 2, 2), (8,), 300_000, EDM),
    Usual(1 << 20, "cpu", "ddpmpp", 32, 1, (1, 1, 1, 2, 2, 2), (8,), 200_000, EDM),
    Usual(16, "small GPU", "ddpmpp", 64, 2, (1, 2), (8,), 20_000_000, EDM),
    Usual(32, "small GPU", "ddpmpp", 64, 3, (2, 2, 2), (16,), 20_000_000, EDM),
    Usual(64, "small GPU", "ddpmpp", 64, 3, (1, 2, 2, 2), (16,), 20_000_000, EDM),
    Usual(1 << 20, "small GPU", "adm", 64, 2, (1, 1, 2, 3, 4), (16, 8), 10_000_000, ADM),
    Usual(32, "large GPU", "ddpmpp", 128, 4, (2, 2, 2), (16,), 50_000_000, EDM),
    Usual(64, "large GPU", "ddpmpp", 128, 4, (1, 2, 2, 2), (16,), 50_000_000, EDM),
    Usual(1 << 20, "large GPU", "adm", 192, 3, (1, 1, 2, 3, 4), (32, 16, 8), 50_000_000, ADM),
)
LATENTS = (
    Usual(1 << 20, "cpu", "dit", 192, 6, (), (), 500_000, DITS, 2),
    Usual(1 << 20, "small GPU", "dit", 384, 12, (), (), 20_000_000, DITS, 2),
    Usual(1 << 20, "large GPU", "edm2", 128, 3, (1, 2, 3, 4), (16, 8), 50_000_000, EDM2),
)


def usual(data_shape: Sequence[int], latent: bool = False, machine: Machine | None = None, kind: str = "auto") -> Usual:
    """The row for data of a shape, points or (C, H, W), on this machine unless one is named; of an architecture or any.

    >>> usual((1, 8, 8)).type, usual((3, 64, 64), machine="cpu").channel_mult
    ('mlp', (1, 2, 2, 2))
    """
    side = max(data_shape[1:]) if len(data_shape) == 3 else 0
    if kind == "mlp" or (kind == "auto" and side <= TINY and not latent):
        return MLP
    there = machine or this_machine()
    if kind == "dit":
        return next(row for row in LATENTS if row.type == "dit" and there in (row.machine, "large GPU"))
    rows = LATENTS if latent and kind == "auto" else PIXELS
    row = next(row for row in rows if row.machine == there and side <= row.side)
    return row if kind == "auto" else replace(row, type=kind)


def attended(data_shape: Sequence[int], channel_mult: Sequence[int], up_to: Sequence[int]) -> tuple[int, ...]:
    """The resolutions of a U-Net for pictures (C, H, W), by the longer side as it is padded, that attend.

    >>> attended((3, 48, 64), (1, 2, 2, 2), (16,)), attended((1, 28, 28), (1, 2, 2), (8,))
    ((16,), (7,))
    """
    factor = 2 ** max(0, len(channel_mult) - 1)
    longest = -(-max(data_shape[1:], default=0) // factor) * factor
    sides = [longest >> level for level in range(len(channel_mult))]
    return tuple(dict.fromkeys(max((s for s in sides if s <= most), default=sides[-1]) for most in up_to if sides))


@cache
def this_machine() -> Machine:
    """What there is to train on."""
    if not torch.cuda.is_available():
        return "cpu"
    return "large GPU" if torch.cuda.get_device_properties(0).total_memory >= LARGE else "small GPU"
