"""Batches that fit into memory: the compute batch of sampling, and the parts of a training batch.

Neither is part of what is computed: a sample depends on its seed alone, and the parts of a batch give one gradient. A
run keeps what it chose, because the last bits of its numbers depend on it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from sims.errors import UserError
from sims.experiments.cost.described import Known, known_data
from sims.experiments.cost.estimate import Pilot, measure
from sims.experiments.cost.memory import free_memory
from sims.experiments.cost.rates import affordable
from sims.experiments.options import ImproveOptions
from sims.model import Model
from sims.runs.directory import Run

ROOM = 0.8  # of the free memory: pilots are short, and libraries keep some for themselves
BESIDE = {"base": 1, "auxiliary": 1, "distilled": 2}  # networks in memory besides the one that trains


@dataclass(frozen=True)
class Batches:
    """Samples at once, and into how many parts each training splits its batch."""

    batch_size: int
    base: int
    auxiliary: int
    distilled: int

    def applied(self, options: ImproveOptions) -> ImproveOptions:
        """The options with these batches."""
        changes: dict[str, Any] = {"batch_size": self.batch_size}
        for name in BESIDE:
            part = getattr(options, name)
            changes[name] = replace(part, train=replace(part.train, accumulate=getattr(self, name)))
        return replace(options, **changes)


def fitted(run: Run, options: ImproveOptions, model: Model | None) -> ImproveOptions:
    """The options with batches that fit: chosen at the start of the run, where that is asked for, and kept with it."""
    file = run.path / "batches.json"
    if not options.fit_memory and not file.is_file():
        return options

    def choose() -> dict[str, int]:
        run.log("choosing batches that fit into memory")
        known = known_data(options, model)
        pilot = measure(options, known, model, run.device, run.num_processes)
        found = choose_batches(options, known, pilot, free_memory(run.device), run.num_processes, run.device)
        return asdict(found)

    chosen = Batches(**run.once(file, choose))
    run.log(
        f"{chosen.batch_size} samples at once; training batches in {chosen.base} (base), {chosen.auxiliary} "
        f"(auxiliary) and {chosen.distilled} (distilled) parts"
    )
    return chosen.applied(options)


def choose_batches(
    options: ImproveOptions, known: Known, pilot: Pilot, free: int, processes: int, device: torch.device
) -> Batches:
    """The largest batches that fit, no larger than those asked for. UserError where not even one image does."""
    room = ROOM * free - (0 if device.type == "cuda" else known.held)
    parts = {}
    for name, beside in BESIDE.items():
        train = getattr(options, name).train
        rate = pilot.cost.train.get(name)
        if rate is None:
            parts[name] = train.accumulate
            continue
        share = train.batch // processes
        possible = [count for count in range(train.accumulate, share + 1) if share % count == 0]
        left = room - beside * pilot.weights
        found = next((count for count in possible if rate.bytes(share // count) <= left), None)
        if found is None or rate.batch == 0:
            raise UserError(
                f"{free / 1e9:.1f} GB are free, and training the network takes {rate.bytes(1) / 1e9:.1f} GB for one "
                "image at once: give a smaller network, or a device with more memory"
            )
        parts[name] = found
    return Batches(affordable(pilot.cost.evaluation, options.batch_size, room), **parts)
