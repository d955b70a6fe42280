"""Repeats of an experiment: each has a run directory of its own, so that several can be computed at once."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from sims.config import to_dict
from sims.data.dataset import Dataset
from sims.data.sources import load_pair
from sims.errors import UserError
from sims.experiments.loop.options import CommonOptions
from sims.processes import agree
from sims.scoring.judge import Judge, load_judge


class Unit(Protocol):
    """What is done in one go: a repeat, or a part of one."""

    @property
    def finished(self) -> bool: ...


T = TypeVar("T")
U = TypeVar("U", bound=Unit)
Opened = tuple[Dataset, Judge]
UNBOUND = ("run", "repeats", "jobs")  # options that may change when a run is continued


def configuration(options: CommonOptions, **more: Any) -> dict[str, Any]:
    """What a run directory is bound to."""
    return {key: value for key, value in to_dict(options).items() if key not in UNBOUND} | more


def open_again(options: CommonOptions, references: Path, device: Any) -> Opened:
    """The training data and the judge of a run whose references are there, for a process of its own."""
    data = options.data
    both = load_pair(data.path, data.test, data.test_fraction, options.seed, options=data.source, limit=data.limit)
    return both[0], load_judge(references, *both, options.evaluation, device)


def work_off(work: Callable[..., None], tasks: Sequence[U], jobs: int, opened: Opened) -> None:
    """Do what is not finished yet: here, with the data and the judge as they are, or in ``jobs`` processes."""
    rest = agree([task for task in tasks if not task.finished])
    if jobs > 1 and len(rest) > 1:
        return in_processes(work, rest, min(jobs, len(rest)))
    for task in rest:
        work(task, opened)
    return None


def in_processes(work: Callable[[T], None], tasks: Sequence[T], jobs: int) -> None:
    """Do the tasks in ``jobs`` processes at once, each with its share of the cores; an error ends all of them.

    ``work`` is a function of a module, and a task can be pickled. The processes end with the one that started them.
    """
    threads = max(1, torch.get_num_threads() // jobs)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=_begin, initargs=(threads, os.getpid())) as pool:
        futures = [pool.submit(work, task) for task in tasks]
        try:
            for future in futures:
                future.result()
        except BaseException:
            for process in multiprocessing.active_children():
                process.terminate()
            raise


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
