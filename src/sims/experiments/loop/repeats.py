"""Repeats of an experiment: each has a run directory of its own, so that several can be computed at once."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Generic, Protocol, TypeVar

import numpy as np
import torch

from sims.config import JSON
from sims.data.dataset import Dataset
from sims.data.sources import load_pair
from sims.errors import UserError
from sims.experiments.loop.models import Models
from sims.experiments.loop.options import RepeatedOptions
from sims.experiments.runner import configuration
from sims.files import write_arrays
from sims.processes import agree
from sims.runs.directory import Run
from sims.scoring.judge import Judge, load_judge
from sims.seeds import derive_seed

O = TypeVar("O", bound=RepeatedOptions)  # noqa: E741
R = TypeVar("R", bound="Runs")
Opened = tuple[Dataset, Judge]
UNBOUND = ("repeats", "jobs")  # options that may change when a run is continued


class Runs(Protocol):
    """What is done in one go, perhaps in a process of its own: it can be pickled, and leaves files."""

    def run(self) -> object: ...


@dataclass(frozen=True)
class Repeat(Generic[O]):
    """One repeat of an experiment on images: a run directory ``folder`` below the run's, and a seed of its own."""

    options: O
    folder: str
    seed: int
    command: ClassVar[str]

    @property
    def path(self) -> Path:
        return self.options.run / self.folder

    @property
    def files(self) -> list[tuple[float, Path]]:
        """The entry that every finished generation or level leaves; beside it lie pictures by the arm's name (npz)."""
        raise NotImplementedError

    @property
    def key(self) -> JSON:
        """What its directory is bound to, besides the options."""
        return self.seed

    @property
    def finished(self) -> bool:
        return all(file.is_file() for _, file in self.files)

    def work(self, models: Models, train: Dataset) -> None:
        """Compute, or continue."""
        raise NotImplementedError

    def run(self, opened: Opened | None = None) -> None:
        """Run or continue it; ``opened`` are the data and the judge, where this process has them."""
        config = configuration(self.command, self.options, UNBOUND, task=self.key)
        run = Run(self.path, config, track=self.options.track)
        try:
            train, judge = opened or open_again(self.options, self.options.run / "references", run.device)
            self.work(Models(run, self.options, judge, self.seed), train)
        finally:
            run.close()


def folders_and_seeds(options: RepeatedOptions) -> list[tuple[str, int]]:
    """Where the repeats lie below the run, and their seeds."""
    return [(f"repeats/{i:02d}", derive_seed("repeat", options.seed, i)) for i in range(options.repeats)]


def write_grids(run: Run, repeat: Repeat[O], train: Dataset) -> None:
    """The same seeds for every arm and generation or level of the first repeat, as ``arm@place``; and real images."""
    arrays: dict[str, np.ndarray] = {}
    for place, file in repeat.files:
        with np.load(file.with_suffix(".npz")) as archive:
            arrays |= {f"{name}@{place:g}": archive[name] for name in archive.files}
    some = np.random.default_rng(0).permutation(len(train))[: len(next(iter(arrays.values())))]
    write_arrays(run.path / "grids.npz", arrays | {"real": train.codec.to_images(train.batch(some)[0])})


def open_again(options: RepeatedOptions, references: Path, device: torch.device) -> Opened:
    """The training data and the judge of a run whose references are there, for a process of its own."""
    data = options.data
    both = load_pair(data.path, data.test, data.test_fraction, options.seed, options=data.source, limit=data.limit)
    return both[0], load_judge(references, *both, options.evaluation, device)


def work_off(repeats: Sequence[Repeat[O]], jobs: int, opened: Opened) -> None:
    """Do what is not finished yet: here, with the data and the judge as they are, or in ``jobs`` processes."""
    rest = agree([repeat for repeat in repeats if not repeat.finished])
    if jobs > 1 and len(rest) > 1:
        return in_processes(rest, min(jobs, len(rest)))
    for repeat in rest:
        repeat.run(opened)
    return None


def in_processes(parts: Sequence[Runs], jobs: int) -> None:
    """Run the parts in ``jobs`` processes at once, each with its share of the cores; an error ends all of them.

    The processes end with the one that started them.
    """
    threads = max(1, torch.get_num_threads() // jobs)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=_begin, initargs=(threads, os.getpid())) as pool:
        futures = [pool.submit(_run, part) for part in parts]
        try:
            for future in futures:
                future.result()
        except BaseException:
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def _run(part: Runs) -> None:
    part.run()


def check_jobs(jobs: int, num_processes: int) -> None:
    """UserError for repeats in processes within a job of several processes."""
    if jobs > 1 and num_processes > 1:
        raise UserError(f"jobs is {jobs} under {num_processes} processes of torchrun: use one of the two")


def _begin(threads: int, parent: int) -> None:
    torch.set_num_threads(threads)

    def watch() -> None:  # a killed parent tells nobody, and the run directory must not stay in use
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
