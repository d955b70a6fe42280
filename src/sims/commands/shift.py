"""``sims shift``: generate the proportions that were asked for."""

from __future__ import annotations

from sims.config import to_dict
from sims.errors import UserError
from sims.experiments.memory import is_out_of_memory
from sims.experiments.shift.options import ShiftOptions
from sims.experiments.shift.shift import run_shift
from sims.experiments.shift.summary import shift_table
from sims.files import read_json
from sims.runs import Run


def shift(options: ShiftOptions) -> int:
    """Run or continue distribution control; prints its closing table."""
    run = Run(options.run, {key: value for key, value in to_dict(options).items() if key != "run"})
    try:
        file = run.path / "summary.json"
        if file.is_file():
            run.log(f"{run.path} is finished; delete it, or choose another --run, to start anew")
            summary = read_json(file)
        else:
            summary = run_shift(options, run)
        run.console.print(shift_table(summary))
        run.console.print(summary["headline"], highlight=False)
        for warning in summary["warnings"]:
            run.console.print(f"note: {warning}", highlight=False)
        run.console.print(f"figures: {file}   model: {run.path / 'improved'}", highlight=False)
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
