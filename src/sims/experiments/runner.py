"""The runner: how every experiment opens, continues, finishes and reports its run directory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch

from sims import threads
from sims.config import to_dict
from sims.data import mapped
from sims.errors import UserError
from sims.experiments.cost.memory import is_out_of_memory
from sims.processes import agree
from sims.report import closing_table, write_report
from sims.results.common import Result
from sims.results.summaries import read_result, write_result
from sims.runs.directory import Rehearsal, Run
from sims.runs.tracked_results import track_result


class Options(Protocol):
    """Options of an experiment: a frozen dataclass that names the run directory."""

    @property
    def run(self) -> Path: ...

    @property
    def track(self) -> tuple[str, ...]: ...


O = TypeVar("O", bound=Options)  # noqa: E741
R = TypeVar("R", bound=Result)


@dataclass(frozen=True)
class Experiment(Generic[O, R]):
    """What the runner needs to know of an experiment.

    work       computes, or continues, in a run directory; leaves everything there but ``summary.json``
    unbound    options that may change when a run is continued: they are of no consequence for what it computes
    whole      whether a finished result is all that these options ask for (a loop may be given more repeats)
    """

    name: str
    result: type[R]
    work: Callable[[Run, O], R]
    unbound: tuple[str, ...] = ()
    whole: Callable[[O, R], bool] = lambda options, result: True


def configuration(experiment: str, options: object, unbound: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
    """What a run directory is bound to: the command that made it, and its options."""
    bound = {
        key: value
        for key, value in to_dict(options).items()
        if key not in ("run", "dry_run", "download", "track", *unbound)
    }
    return {"command": experiment, **bound, **more}


def carry_out(experiment: Experiment[O, R], options: O, *, quiet: bool = False) -> R:
    """Run or continue an experiment in ``options.run``; its result, which ``summary.json`` holds.

    Errors: UserError for bad options or data, for a run directory of another configuration or in use, and where memory
    does not suffice.
    """
    config = configuration(experiment.name, options, experiment.unbound)
    run = Run(options.run, config, quiet=quiet, track=options.track)
    try:
        result = _finished(run, experiment, options)
        if result is not None:
            run.log(f"{run.path} is finished; delete it, or choose another run directory, to start anew")
        else:
            _settle_threads(run)
            result = experiment.work(run, options)
            if run.is_main:
                write_result(run.path, result)
                (run.path / "report.html").unlink(missing_ok=True)
            run.barrier()
        if run.tracking is not None:
            track_result(run.tracking, result)
        if run.is_main:
            _show(run, result)
        return result
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        remedy = "with more memory free, or with a lower batch_size in a new run directory"
        if hasattr(options, "fit_memory"):
            remedy = "with fit_memory, which samples fewer at once and splits training batches"
        raise UserError(
            f"memory did not suffice ({str(error).splitlines()[0]}); nothing is lost: run the same command again "
            f"{remedy}"
        ) from None
    finally:
        run.close()


def _settle_threads(run: Run) -> None:
    """As many as are fastest when a run begins; it keeps their number, on which the last bits of its figures depend."""
    if run.num_processes > 1 or threads.is_chosen():
        return
    threads.limit(run.once(run.path / "threads.json", threads.fastest))
    run.log(
        f"{torch.get_num_threads()} threads, the fastest here when the run began (OMP_NUM_THREADS decides otherwise)"
    )


@contextmanager
def rehearsed(experiment: Experiment[O, R], options: O) -> Iterator[Run]:
    """The run directory as ``carry_out`` would find it; nothing is written, there or where data are kept."""
    run = Rehearsal(options.run, configuration(experiment.name, options, experiment.unbound))
    with mapped.rehearsed():
        yield run


def _finished(run: Run, experiment: Experiment[O, R], options: O) -> R | None:
    if not agree((run.path / "summary.json").is_file()):
        return None
    result = read_result(run.path, experiment.result)
    return result if experiment.whole(options, result) else None


def _show(run: Run, result: Result) -> None:
    """The report, where there is none yet, and the closing lines."""
    page = run.path / "report.html"
    if not page.is_file():
        write_report(run.path)
    say = run.console.print
    say(closing_table(result))  # type: ignore[arg-type]
    say(result.headline, highlight=False)
    for warning in result.warnings:
        say(f"note: {warning}", highlight=False)
    models = sorted(str(file.parent) for file in run.path.glob("*/model.json"))
    made = f"   models: {', '.join(models)}" if models else ""
    say(f"report: {page}   figures: {run.path / 'summary.json'}{made}", highlight=False)
