"""Distribution control as a whole: a run directory, the experiment in it, its report and closing table."""

from __future__ import annotations

from typing import Any

from sims.config import to_dict
from sims.errors import UserError
from sims.experiments.memory import is_out_of_memory
from sims.experiments.shift.options import ShiftOptions
from sims.experiments.shift.shift import run_shift
from sims.experiments.shift.summary import shift_table
from sims.files import read_json
from sims.report import write_report
from sims.runs import Run


def shift(options: ShiftOptions, *, quiet: bool = False) -> dict[str, Any]:
    """Run or continue distribution control in ``options.run``; returns the summary that ``summary.json`` holds.

    Errors: UserError for bad options, data, targets or classifiers, or a run directory of another configuration or in
    use.
    """
    run = Run(options.run, {key: value for key, value in to_dict(options).items() if key != "run"}, quiet=quiet)
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
            f"memory did not suffice ({str(error).splitlines()[0]}); nothing is lost: run the same command again in a "
            "new --run with a lower --batch-size"
        ) from None
    finally:
        run.close()
