"""Repeats of an experiment: each has a run directory of its own, so that several can be computed at once."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

import torch

from sims.config import to_dict
from sims.errors import UserError
from sims.experiments.loop.options import CommonOptions

T = TypeVar("T")
UNBOUND = ("run", "repeats", "jobs")  # options that may change when a run is continued


def configuration(options: CommonOptions, **more: Any) -> dict[str, Any]:
    """What a run directory is bound to."""
    return {key: value for key, value in to_dict(options).items() if key not in UNBOUND} | more


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
