"""The search against the full grid: 4 budgets x w = 0 ... 6 in steps of 0.5 x 5,000 samples.

    python benchmarks/search_grid.py --run runs/digits --out benchmarks/results/search-grid.json

Uses the base and the auxiliary of a finished run. "Within the noise": the chosen cell and the grid's best are sampled
again on five fresh draws, paired by seed; the interval of their difference includes zero or favours the choice.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from common import save
from sims.data.sources import load_pair
from sims.methods import LEADER
from sims.metrics.intervals import paired_interval
from sims.model import Model, load
from sims.results.improve import ImproveResult
from sims.results.summaries import read_result
from sims.runs.measure import sampled
from sims.scoring.judge import Judge, load_judge
from sims.scoring.options import EvaluationOptions

STRENGTHS = [0.5 * index for index in range(13)]


def grid_cell(base: Model, aux: Model, w: float, judge: Judge, seeds: range) -> float:
    model = base.guided(aux, w) if w else base
    return judge.frechet(judge.features(sampled(model, seeds).x))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/digits"))
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/search-grid.json"))
    options = parser.parse_args()
    search = read_result(options.run, ImproveResult).search
    assert search is not None
    train, test = load_pair("digits")
    judge = load_judge(options.run / "references", train, test, EvaluationOptions())
    base = load(next(iter(sorted((options.run / "base" / "snapshots").iterdir(), reverse=True))))
    folder = next((options.run / "artefacts").glob("auxiliary-*")) / "snapshots"
    auxiliaries = {int(path.name): load(path) for path in sorted(folder.iterdir())}
    zero = grid_cell(base, base, 0.0, judge, range(10**9, 10**9 + options.samples))
    cells: list[dict[str, Any]] = []
    for budget, aux in auxiliaries.items():
        for w in STRENGTHS:
            fd = zero if w == 0 else grid_cell(base, aux, w, judge, range(10**9, 10**9 + options.samples))
            cells.append({"budget": budget, "w": w, "fd": fd})
            print(f"budget {budget:>7,} w {w:3.1f}: {fd:.2f}", flush=True)
    best = min(cells, key=lambda cell: cell["fd"])
    ours = search.chosen[LEADER.name]
    chosen, used = {"budget": ours.budget, "w": ours.w}, ours.samples

    def again(cell: dict[str, Any]) -> list[float]:
        aux = auxiliaries[cell["budget"]]
        starts = [2 * 10**9 + index * options.samples for index in range(5)]
        return [grid_cell(base, aux, cell["w"], judge, range(start, start + options.samples)) for start in starts]

    fresh, theirs = again(chosen), again(best)
    difference = paired_interval(fresh, theirs)
    total = len(cells) * options.samples
    verdict = "within the noise of" if difference.low <= 0 else "worse than"
    print(f"grid: {total:,} samples, best budget {best['budget']:,} w {best['w']:g}; search: {used:,} samples "
          f"({used / total:.1%}), budget {chosen['budget']:,} w {chosen['w']:g}")  # fmt: skip
    print(f"fresh draws: search {np.mean(fresh):.2f}, grid {np.mean(theirs):.2f}; difference {difference.mean:+.2f} "
          f"[{difference.low:+.2f}, {difference.high:+.2f}]: the choice is {verdict} the grid's best")  # fmt: skip
    save(options.out, {"benchmark": "search against the full grid", "cells": cells, "grid_samples": total, "best": best,
                       "chosen": chosen, "search_samples": used, "share": used / total, "fresh_search": fresh,
                       "fresh_grid": theirs, "difference": asdict(difference), "verdict": verdict})  # fmt: skip


if __name__ == "__main__":
    main()
