"""``sims shift``: generate the proportions that were asked for."""

from __future__ import annotations

from sims.config import to_dict
from sims.errors import UserError
from sims.experiments.memory import is_out_of_memory
from sims.experiments.shift.options import ShiftOptions
from sims.experiments.shift.shift import run_shift
from sims.experiments.shift.summary import shift_table
from sims.files import read_json
from sims.report import write_report
from sims.runs import Run


def shift(options: ShiftOptions) -> int:
    """Run or continue distribution control; prints its closing table."""
    run = Run(options.run, {key: value for key, value in to_dict(options).items() if key != "run"})
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
        return 0
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"memory did not suffice ({str(error).splitlines()[0]}); nothing is lost: run the same command again in a "
            "new --run with a lower --batch-size"
        ) from None
    finally:
        run.close()
