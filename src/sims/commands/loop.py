"""``sims loop`` and ``sims pollution``: what becomes of models trained on models' output, and what prevents it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from rich.table import Table

from sims.experiments.loop.generations import run_images
from sims.experiments.loop.options import CommonOptions, LoopOptions, PollutionOptions
from sims.experiments.loop.pollution import run_pollution
from sims.experiments.loop.pollution_summary import pollution_table
from sims.experiments.loop.repeats import configuration
from sims.experiments.loop.summary import loop_table
from sims.files import read_json
from sims.report import write_report
from sims.runs.directory import Run

T = TypeVar("T", bound=CommonOptions)


def loop(options: LoopOptions) -> int:
    """Run or continue a loop of generations; prints its closing table."""
    if options.is_toy:
        from sims.experiments.loop.point_loop import run_replicas

        _run(options, run_replicas, loop_table)
    else:
        _run(options, run_images, loop_table)
    return 0


def pollution(options: PollutionOptions) -> int:
    """Run or continue the pollution experiment; prints its closing table."""
    _run(options, run_pollution, pollution_table)
    return 0


def _run(
    options: Any, work: Callable[[Any, Run], dict[str, Any]], table: Callable[[dict[str, Any]], Table]
) -> dict[str, Any]:
    """The summary of a finished run, or what ``work`` makes of it."""
    run = Run(options.run, configuration(options))
    try:
        file, page = run.path / "summary.json", run.path / "report.html"
        summary = read_json(file) if file.is_file() else None
        finished = summary is not None and summary["repeats"] == options.repeats
        if summary is not None and finished:
            run.log(f"{run.path} is finished; delete it, or choose another --run, to start anew")
        else:
            summary = work(options, run)
        if run.is_main and not (finished and page.is_file()):
            write_report(run.path)
        run.console.print(table(summary))
        run.console.print(summary["conclusion"], highlight=False)
        report = f"report: {page}   " if page.is_file() else ""
        run.console.print(f"{report}figures: {file}", highlight=False)
        return summary
    finally:
        run.close()
