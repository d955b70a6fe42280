"""What is usual: the network and the sizes of a job, which follow from the data and the machine. One table.

Rows for large GPUs are published settings; those for less are the same networks, narrower and of fewer blocks, and on a
CPU so few samples that a job ends within a day at 64 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import torch

Machine = Literal["cpu", "small GPU", "large GPU"]
LARGE = 24 << 30  # bytes of a GPU's memory
EPOCHS = 1_000  # that a training lasts at most: own choice, between the digits' 890 here and CIFAR-10's 4,000 (EDM)
TINY = 12  # pixels a side, up to which a picture is but a few numbers

EDM, ADM, EDM2 = "Karras et al. 2022, table 7", "Dhariwal and Nichol 2021, table 4", "Karras et al. 2024, table 6"
DITS = "Peebles and Xie 2023, table 1"
OWN = "measured on the digits"


@dataclass(frozen=True)
class Sizes:
    """The sizes of a job, by the options that they stand in for; these of the options themselves where nothing is said.

    batch, lr      base.train.batch, and that of all that trains; base.train.lr; warm-ups last for 100 batches
    decay_batches  base.train.decay sqrt, from so many batches on
    solver, steps  of the sampler
    at_once        batch_size
    own, budgets   auxiliary.samples; auxiliary.budgets, as shares of the base's training
    rungs, limit   of the search
    judged, draws  evaluation.samples and .draws
    distilled      distilled.images, as a share of the base's training
    """

    batch: int = 256
    lr: float | None = None
    decay_batches: int | None = None
    solver: Literal["heun", "unipc"] = "heun"
    steps: int = 18
    at_once: int = 500
    own: int = 10_000
    budgets: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4)
    rungs: tuple[int, ...] = (400, 1_000, 2_500)
    limit: int = 26_000
    judged: int = 5_000
    draws: int = 5
    distilled: float = 0.1


PLAIN = Sizes()
# On a CPU: of Fashion-MNIST (docs/figures.md), and with fewer samples as these grow; UniPC in 16 evaluations for 35.
CPU_32 = Sizes(
    batch=128, solver="unipc", steps=16, at_once=250, budgets=(0.025, 0.05, 0.1), rungs=(250, 500, 1_000), limit=8_000,
    judged=2_000, distilled=0.16,
)  # fmt: skip
CPU_64 = replace(
    CPU_32, at_once=64, own=5_000, rungs=(100, 200, 400), limit=3_000, judged=1_000, draws=3, distilled=0.12
)
CPU_128 = replace(CPU_64, batch=64, at_once=16, own=2_000, rungs=(50, 100, 200), limit=1_500, judged=500)
# Published: of CIFAR-10 and FFHQ 64 (EDM), ImageNet (ADM; DiT), latents (EDM2).
EDM_SMALL, ADM_SMALL = Sizes(at_once=128), Sizes(lr=1e-4, steps=40, at_once=16)
EDM_32, EDM_64 = Sizes(batch=512), Sizes(lr=2e-4, steps=40, at_once=250)
ADM_SIZES, DIT_SIZES = Sizes(lr=1e-4, steps=40, at_once=32), Sizes(lr=1e-4, steps=32, at_once=64)
EDM2_SIZES = Sizes(batch=2_048, lr=1e-2, decay_batches=70_000, steps=32, at_once=64)


@dataclass(frozen=True)
class Usual:
    """A network by its options, for data up to so many pixels a side, and the images that its training sees.

    ``attention``: for each of these sizes, the largest resolution up to it attends. ``images`` are never more than
    ``EPOCHS`` times all pictures.
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
    sizes: Sizes
    patch: int = 1

    def length(self, count: int | None = None) -> int:
        """Images that a training sees, of so many pictures."""
        return min(self.images, EPOCHS * count) if count else self.images


MLP = Usual(TINY, "cpu", "mlp", 256, 3, (), (), 1_280_000, OWN, PLAIN)
PIXELS = (
    Usual(16, "cpu", "ddpmpp", 32, 1, (1, 2), (8,), 1_000_000, EDM, CPU_32),
    Usual(32, "cpu", "ddpmpp", 32, 1, (1, 2, 2), (8,), 1_000_000, EDM, CPU_32),
    Usual(64, "cpu", "ddpmpp", 32, 1, (1, 2, 2, 2), (8,), 500_000, EDM, CPU_64),
    Usual(128, "cpu", "ddpmpp", 32, 1, (1, 1, 2, 2, 2), (8,), 300_000, EDM, CPU_128),
    Usual(1 << 20, "cpu", "ddpmpp", 32, 1, (1, 1, 1, 2, 2, 2), (8,), 200_000, EDM, CPU_128),
    Usual(16, "small GPU", "ddpmpp", 64, 2, (1, 2), (8,), 20_000_000, EDM, PLAIN),
    Usual(32, "small GPU", "ddpmpp", 64, 3, (2, 2, 2), (16,), 20_000_000, EDM, PLAIN),
    Usual(64, "small GPU", "ddpmpp", 64, 3, (1, 2, 2, 2), (16,), 20_000_000, EDM, EDM_SMALL),
    Usual(1 << 20, "small GPU", "adm", 64, 2, (1, 1, 2, 3, 4), (16, 8), 10_000_000, ADM, ADM_SMALL),
    Usual(32, "large GPU", "ddpmpp", 128, 4, (2, 2, 2), (16,), 50_000_000, EDM, EDM_32),
    Usual(64, "large GPU", "ddpmpp", 128, 4, (1, 2, 2, 2), (16,), 50_000_000, EDM, EDM_64),
    Usual(1 << 20, "large GPU", "adm", 192, 3, (1, 1, 2, 3, 4), (32, 16, 8), 50_000_000, ADM, ADM_SIZES),
)
LATENTS = (
    Usual(1 << 20, "cpu", "dit", 192, 6, (), (), 500_000, DITS, CPU_64, 2),
    Usual(1 << 20, "small GPU", "dit", 384, 12, (), (), 20_000_000, DITS, DIT_SIZES, 2),
    Usual(1 << 20, "large GPU", "edm2", 128, 3, (1, 2, 3, 4), (16, 8), 50_000_000, EDM2, EDM2_SIZES),
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
