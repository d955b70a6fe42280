"""Batches that fit into memory: the compute batch of sampling, and the parts of a training batch.

Neither is part of what is computed: a sample depends on its seed alone, and the parts of a batch give one gradient. A
run keeps what it chose, because the last bits of its numbers depend on it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from sims.config import JSON, convert, override
from sims.errors import UserError
from sims.experiments.cost.described import DataSize
from sims.experiments.cost.estimate import Pilot, Plan, run_pilot
from sims.experiments.cost.memory import free_memory
from sims.experiments.cost.rates import affordable
from sims.experiments.options import ImproveOptions
from sims.model import Model
from sims.runs.directory import Run

ROOM = 0.8  # of the free memory: pilots are short, and libraries keep some for themselves


@dataclass(frozen=True)
class Batches:
    """Samples at once, and into how many parts each training splits its batch, by the training's name."""

    batch_size: int
    parts: dict[str, int]

    def applied(self, options: ImproveOptions) -> ImproveOptions:
        """The options with these batches."""
        changes: dict[str, JSON] = {name: {"train": {"accumulate": count}} for name, count in self.parts.items()}
        return override(options, {**changes, "batch_size": self.batch_size})


def fitted(
    run: Run, options: ImproveOptions, size: Callable[[], DataSize], model: Model | None, plan: Plan
) -> ImproveOptions:
    """The options with batches that fit: chosen at the start of the run, where that is asked for, and kept with it."""
    file = run.path / "batches.json"
    if not options.fit_memory and not file.is_file():
        return options

    def choose() -> dict[str, JSON]:
        run.log("choosing batches that fit into memory")
        data = size()
        pilot = run_pilot(options, data, model, plan, run.device, run.num_processes)
        return asdict(choose_batches(options, data, pilot, free_memory(run.device), run.num_processes, run.device))

    chosen = convert(run.once(file, choose), Batches, "batches.json", "entry")
    parts = ", ".join(f"{count} ({name})" for name, count in chosen.parts.items())
    run.log(f"{chosen.batch_size} samples at once; training batches in parts: {parts}")
    return chosen.applied(options)


def choose_batches(
    options: ImproveOptions, data: DataSize, pilot: Pilot, free: int, processes: int, device: torch.device
) -> Batches:
    """The largest batches that fit, no larger than those asked for. UserError where not even one image does."""
    room = ROOM * free - (0 if device.type == "cuda" else data.held)
    parts: dict[str, int] = {}
    for training, rate in pilot.rates.training.items():
        share, least = training.options.batch // processes, training.options.accumulate
        left = room - (2 if training.taught else 1) * pilot.weights  # what lies beside the network that trains
        possible = [count for count in range(least, share + 1) if share % count == 0]
        count = next((count for count in possible if rate.bytes(share // count) <= left), None)
        if count is None or rate.batch == 0:
            raise UserError(
                f"{free / 1e9:.1f} GB are free, and training the network takes {rate.bytes(1) / 1e9:.1f} GB for one "
                "image at once: give a smaller network, or a device with more memory"
            )
        parts[training.name] = max(count, parts.get(training.name, 1))
    return Batches(affordable(pilot.rates.evaluation, options.batch_size, room), parts)
