"""Draw and measure: the one way in which samples of a run become what is kept of them, a file per part of the seeds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from sims.config import read_as
from sims.data.codec import Codec, finite
from sims.files import write_json
from sims.model import Model
from sims.runs.directory import Run
from sims.sampling import SamplerOptions, SamplingStep
from sims.training.on_trajectories import Steps


class Kept(Protocol):
    """What is kept of a part's samples."""

    def save(self, file: Path) -> None: ...

    @classmethod
    def load(cls, file: Path) -> Self: ...


K = TypeVar("K", bound=Kept)


@dataclass(frozen=True)
class Samples:
    """Samples x (n, *data_shape) as the data's own format holds them, in model space; labels (n,) or None.

    ``bad`` (n,) bool are those that had values that were not finite; None where none had. Nothing leaves bad samples
    out, and no measurement fails for them; whoever shows figures shows how many ``diverged``.
    """

    x: Tensor
    labels: Tensor | None = None
    bad: Tensor | None = None

    @property
    def diverged(self) -> int:
        """How many of them are bad."""
        return 0 if self.bad is None else int(self.bad.sum())


def rounded(x: Tensor, codec: Codec, labels: Tensor | None = None) -> Samples:
    """Samples (n, *data_shape) rounded to the values that the data can have; those that diverged are marked."""
    values, bad = finite(x)
    return Samples(codec.encode(codec.decode(values)), labels, bad if bad.any() else None)


def sampled(
    model: Model, seeds: Sequence[int], sampler: SamplerOptions | None = None, batch_size: int = 500
) -> Samples:
    """A model's samples of these seeds, rounded."""
    x, labels = model.sample_labelled(seeds, sampler=sampler, batch_size=batch_size)
    return rounded(x, model.codec, labels)


def parts_of(seeds: range, size: int) -> list[range]:
    """Consecutive parts of ``size`` seeds; the last one has what is left."""
    return [seeds[first : first + size] for first in range(0, len(seeds), size)]


def draw_and_measure(
    run: Run,
    folder: Path,
    parts: Sequence[range],
    draw: Callable[[range], Samples],
    measure: Callable[[Samples], K],
    kind: type[K],
    advance: Callable[[int], None],
) -> list[K]:
    """What is kept of every part, measured or found in ``folder``; shared out over the processes.

    A part's file depends on its seeds alone, so an interrupted job that is run again leaves the same bytes. The seconds
    that drawing took lie beside it (``seconds``), not in it.
    """

    def file(part: range) -> Path:
        return folder / f"{part.start}-{part.stop}.safetensors"

    def work(part: range) -> None:
        begin = time.monotonic()
        samples = draw(part)
        spent = time.monotonic() - begin
        folder.mkdir(parents=True, exist_ok=True)
        write_json(_times(folder, part), spent)
        measure(samples).save(file(part))
        advance(len(part) * run.num_processes)

    run.spread(parts, file, work)
    return [kind.load(file(part)) for part in parts]


def steps_of(model: Model, seeds: Sequence[int], batch_size: int = 500) -> Steps:
    """The ways of a model's samples of these seeds: state and estimate at every step of its sampler."""
    told: dict[int, list[SamplingStep]] = {}
    labels = model.sample_labelled(
        seeds, batch_size=batch_size, callback=lambda step: told.setdefault(step.index, []).append(step)
    )[1]
    columns = [told[index] for index in sorted(told)]
    states, estimates = (
        torch.stack([torch.cat([getattr(step, name).cpu().half() for step in column]) for column in columns], 1).numpy()
        for name in ("x", "denoised")
    )
    levels = np.array([column[0].sigma for column in columns], np.float32)
    return Steps(states, estimates, levels, None if labels is None else labels.numpy())


def seconds(folder: Path, parts: Sequence[range]) -> list[float]:
    """How long drawing each part took."""
    return [read_as(_times(folder, part), float) for part in parts]


def _times(folder: Path, part: range) -> Path:
    return folder / "times" / f"{part.start}-{part.stop}.json"
