"""Distribution control as a whole: a run directory, the experiment in it, its report and closing table."""

from __future__ import annotations

from typing import Any

from sims.config import to_dict
from sims.errors import UserError
from sims.experiments.cost.memory import is_out_of_memory
from sims.experiments.cost.table import Estimate
from sims.experiments.shift.estimate import estimate_shift
from sims.experiments.shift.options import ShiftOptions
from sims.experiments.shift.shift import run_shift
from sims.experiments.shift.summary import shift_table
from sims.files import read_json
from sims.report import write_report
from sims.runs.directory import Run


def shift(options: ShiftOptions, *, quiet: bool = False) -> dict[str, Any] | Estimate:
    """Run or continue distribution control in ``options.run``; returns the summary that ``summary.json`` holds.

    With ``options.dry_run`` nothing is run or written: what the job would cost is returned.

    Errors: UserError for bad options, data, targets or classifiers, or a run directory of another configuration or in
    use.
    """
    if options.dry_run:
        return estimate_shift(options)
    config = {key: value for key, value in to_dict(options).items() if key not in ("run", "dry_run")}
    run = Run(options.run, config, quiet=quiet)
    try:
        file, page = run.path / "summary.json", run.path / "report.html"
        finished = file.is_file()
        if finished:
            run.log(f"{run.path} is finished; delete it, or choose another --run, to start anew")
            summary = read_json(file)
        else:
            summary = run_shift(options, run)
        if run.is_main and not (finished and page.is_file()):
            write_report(run.path)
        run.console.print(shift_table(summary))
        run.console.print(summary["headline"], highlight=False)
        for warning in summary["warnings"]:
            run.console.print(f"note: {warning}", highlight=False)
        report = f"report: {page}   " if page.is_file() else ""
        run.console.print(f"{report}figures: {file}   model: {run.path / 'improved'}", highlight=False)
        return summary
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"memory did not suffice ({str(error).splitlines()[0]}): free some and run the same command again, or "
            "choose a lower --batch-size in a new --run"
        ) from None
    finally:
        run.close()
