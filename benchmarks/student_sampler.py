"""Is the distilled network cheaper still with another sampler, and is it as good as autoguidance then?

    python benchmarks/student_sampler.py runs/rivals/cifar10-8x8-{0,1,2,3,4} --solver unipc --steps 10 --out FILE.json

Takes finished runs of ``rivals.py``, each with its own base, judge and student, and scores the student on fresh samples
with the given sampler, by the run's two extractors. Beside it stand the run's own rows. The sampler is one for all: it
is what ``sims improve --model RUN/distilled`` found for the first of them (``base (tuned)`` there). ``pair`` says what
a student of the pair has learned: one of autoguidance needs old snapshots.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import sims
from common import save
from sims.results.improve import ImproveResult
from sims.results.summaries import read_result
from sims.sampling import SamplerOptions

ROWS = ("base", "autoguidance", "distilled")
JUDGES = {"": "references", "check_": "references/check"}


def score(run: Path, sampler: SamplerOptions, samples: int) -> dict[str, Any]:
    """FD to train and to test of the student, and of the run's own rows, by both extractors."""
    result = read_result(run, ImproveResult)
    student = replace(sims.load(run / "distilled"), sampler=sampler)
    found: dict[str, float] = {}
    for prefix, folder in JUDGES.items():
        options = {"samples": samples, "draws": 1, "metrics": ["fd"]}
        scores = sims.evaluate(student, run / folder, options=options, quiet=True)
        found |= {f"{prefix}{name}": value.mean for name, value in scores.figures.items()}
    rows = {row.label: row for row in result.rows if row.label in ROWS}
    known = {label: {name: row.figures[name].mean for name in found} for label, row in rows.items()}
    pair = next((row.note for row in result.rows if row.label == "pair"), "")
    line = {"run": run.name, "student": rows["distilled"].note, "pair": pair}
    print(line, found, flush=True)
    return {**line, "rows": {**known, "student": found}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--solver", default="unipc")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    sampler = SamplerOptions(solver=given.solver, steps=given.steps)
    content = {
        "benchmark": "student_sampler",
        "command": f"python benchmarks/student_sampler.py {' '.join('RIVALS/' + run.name for run in given.runs)} "
        f"--solver {given.solver} --steps {given.steps} --samples {given.samples} --out {given.out}",
        "runs": [score(run, sampler, given.samples) for run in given.runs],
    }
    save(given.out, content)


if __name__ == "__main__":
    main()
