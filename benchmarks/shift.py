"""Distribution control: every target, several repeats of the whole procedure, the bounds that must hold.

    python benchmarks/shift.py --bed digits --repeats 3 --out benchmarks/results/shift-digits.json

Bed digits (bundled): uniform (zeros cut to 2 % of the base's training data), thirty (one class at 30 %), joint (parity
x loop), rare (from 2 % zeros to 30 %, in two steps: the distilled model of `uniform`, which draws 10 %, is the next
base, beside which no baselines stand). Beds cifar10-8x8 and, with a GPU, cifar10 (--data FOLDER with train and test
parquet files): half (animals, 60 % of the training data, to 50 %), third (to 30 %).
The experiment is `sims shift`, a run directory for each target and repeat: an interrupted benchmark continues, and a
higher --repeats adds to what is there. Further options go to the experiment.
What has to hold, by the judge at n = 20,000, in every repeat of all but rare: total variation to the target at most
0.035, its upper bound at most 0.045, and a lower FD to the reweighted real data than the base's. In the mean over
repeats, with cached or distilled guidance: at least 3 times fewer evaluations per delivered sample than rejection from
the first base at equal error for 2 % -> 10 %, at least 10 times fewer for 2 % -> 30 %.
"""

from __future__ import annotations

import argparse
import math
import os
import shlex
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from common import save
from sims.config import JSON
from sims.experiments.shift.contenders import CACHED, ratio_within
from sims.experiments.shift.measuring import HELD_OUT
from sims.experiments.shift.measuring import TRAIN as FD
from sims.methods import BASE, DISTILLED
from sims.results.common import Reproduction, Stage
from sims.results.shift import STEERED, ShiftResult
from sims.results.summaries import read_result, to_json

PARITY = "parity:even=0+2+4+6+8/odd=1+3+5+7+9"
LOOP = "loop:loop=0+6+8+9/open=1+2+3+4+5+7"
KIND = "--attributes kind:animal=bird+cat+deer+dog+frog+horse/machine=airplane+automobile+ship+truck"
KINDS = {"half": f"{KIND} --target animal=0.5,machine=0.5", "third": f"{KIND} --target animal=0.3,machine=0.7"}
TARGETS = {
    "digits": {
        "uniform": "--imbalance 0=0.02 --target uniform",
        "thirty": "--target 0=0.3,*=0.7",
        "joint": f"--attributes {PARITY},{LOOP} --target even,loop=0.4,even,open=0.1,odd,loop=0.2,odd,open=0.3",
        "rare": "--target 0=0.3,*=0.7 --baselines.methods ''",
    },
    "cifar10-8x8": KINDS,
    "cifar10": KINDS,
}
BEDS = {
    "digits": "",
    "cifar10-8x8": "--data.source.grayscale --data.source.size 8 --base.images 1536000",
    # The network of the recipe cifar10-20min, and its fine-tuning rate.
    "cifar10": "--network.type ddpmpp --network.width 64 --network.channel-mult 1,2,2 --network.blocks 2 "
    "--network.attention 16 --network.dropout 0.05 --network.sigma-data 0.5 --batch-size 1000 --base.images 2000000 "
    "--base.train.batch 256 --base.train.warmup 100000 --base.train.ema-rampup 0.1 --auxiliary.train.lr 1e-4 "
    "--auxiliary.images 128000 --auxiliary.refine 32000 --distilled.samples 6000 --distilled.images 128000",
}
FIRST = {"rare": "uniform"}  # whose distilled model is the base
BOUND, UPPER = 0.035, 0.045
TIMES = {"uniform": 3.0, "rare": 10.0}
CHEAP = (CACHED, DISTILLED.name)


def command(options: argparse.Namespace, target: str, repeat: int, extra: list[str]) -> list[str]:
    folder, seed = options.run / target / f"{repeat:02d}", options.first_seed + repeat
    words = [sys.executable, "-m", "sims", "shift", "--run", str(folder), "--seed", str(seed)]
    if target in FIRST:
        words += ["--model", str(options.run / FIRST[target] / f"{repeat:02d}" / "distilled")]
    if options.data:
        words += ["--data.path", options.data]
    words += ["--evaluation.samples", "10000", *shlex.split(BEDS[options.bed])]
    return [*words, *shlex.split(TARGETS[options.bed][target]), *extra]


def cheaper(result: ShiftResult, first: ShiftResult | None, label: str) -> tuple[float, int | None] | None:
    """How many times fewer evaluations a sample costs than by rejection at equal error, and the break-even number.

    Rejection is from the base of ``first``, where there is one; then making its distilled model is paid for too. None
    where there is no such row.
    """
    saving = next((saving for saving in result.savings if saving.label == label), None)
    if saving is None:
        return None
    if first is None:
        rejection = saving.rejection_at_equal_error
        return rejection.times or math.inf, rejection.break_even
    shares, target = np.array(first.base.proportions.values), np.array(result.target)
    nfe = first.base.nfe * ratio_within(target, shares, saving.tv or 0.0)
    made = saving.cost.total + next(row.cost.total for row in first.rows if row.label == DISTILLED.name)
    saved = nfe - saving.nfe
    return nfe / saving.nfe, math.ceil(made / saved) if saved > 0 else None


def verdict(target: str, results: list[ShiftResult], first: list[ShiftResult] | None) -> list[str]:
    """Which of the bounds hold, in words; ``first`` are the results of the runs that made the bases."""
    lines = []
    for repeat, result in enumerate(results):
        base, steered = result.base, result.row(STEERED)
        assert steered is not None
        tv, before = steered.proportions.tv, base.proportions.tv.value
        fd, old = steered.figures[FD].mean, base.figures[FD].mean
        holds = tv.value <= BOUND and tv.high <= UPPER and fd < old
        mark = ("holds" if holds else "FAILS") if target != "rare" else "measured"
        text = f"TV {before:.3f} -> {tv.value:.3f} [{tv.low:.3f}, {tv.high:.3f}], FD {old:.2f} -> {fd:.2f}"
        lines.append(f"{mark}: {target}, repeat {repeat}: {text} (n = {steered.n:,}, w = {steered.w:.2f})")
        lines += [f"note: {target}, repeat {repeat}: {warning}" for warning in result.warnings]
        bad = {row.label: row.diverged for row in result.rows if row.diverged}
        lines += [
            f"note: {target}, repeat {repeat}: {count:,} samples of {label} diverged" for label, count in bad.items()
        ]
    if target in TIMES:
        for label in CHEAP:
            found = [cheaper(one, first and first[repeat], label) for repeat, one in enumerate(results)]
            kept = [entry for entry in found if entry is not None]
            if not kept:
                continue
            times = statistics.mean(entry[0] for entry in kept)
            even = ", ".join("never" if entry[1] is None else f"{entry[1]:,}" for entry in kept)
            mark = "holds" if times >= TIMES[target] else "FAILS"
            lines.append(
                f"{mark}: {target}, {label}: {times:.1f} times fewer evaluations per sample than rejection at equal "
                f"error (wanted: {TIMES[target]:g}); break-even at {even}"
            )
    return lines


def kept(result: ShiftResult) -> JSON:
    """What a published result holds: quality within groups of base and steered model alone, and not all options."""
    rows = tuple(row if row.label in (BASE.name, STEERED) else replace(row, groups=()) for row in result.rows)
    made = result.reproduction
    seconds = (Stage("the whole run", round(made.seconds, 1)),)
    return to_json(replace(result, rows=rows, reproduction=Reproduction(made.commands, stages=seconds)))


def spread(values: list[float], digits: int) -> str:
    """Mean and range."""
    if not values:
        return "–"
    return f"{statistics.mean(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def table(target: str, results: list[ShiftResult]) -> str:
    """Every contender: mean over repeats, with the range."""
    lines = ["| " + target + " | TV to target | FD to reweighted train / test | evaluations per sample | making it |"]
    lines.append("|---|---|---|---|---|")
    for label in [row.label for row in results[0].rows]:
        rows = [row for result in results for row in result.rows if row.label == label]
        tv = spread([row.proportions.tv.value or 0.0 for row in rows], 3)
        train, test = (spread([row.figures[fd].mean for row in rows if fd in row.figures], 2) for fd in (FD, HELD_OUT))
        nfe, made = spread([row.nfe for row in rows], 2), statistics.mean(row.cost.total for row in rows)
        lines.append(f"| {label} | {tv} | {train} / {test} | {nfe} | {made:,.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bed", choices=[*TARGETS], default="digits")
    parser.add_argument("--data", help="folder of CIFAR-10's parquet files")
    parser.add_argument("--targets", help="which targets, with commas (default: all of the bed)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--run", type=Path, help="run directories lie here (default: runs/shift-BED)")
    parser.add_argument("--out", type=Path, required=True)
    options, extra = parser.parse_known_args()
    options.run = options.run or Path(f"runs/shift-{options.bed}")
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    lines: list[str] = []
    tables: list[str] = []
    results: dict[str, list[ShiftResult]] = {}
    for target in options.targets.split(",") if options.targets else TARGETS[options.bed]:
        found: list[ShiftResult] = []
        for repeat in range(options.repeats):
            words = command(options, target, repeat, extra)
            subprocess.run(words, env=environment, check=True)
            result = read_result(options.run / target / f"{repeat:02d}", ShiftResult)
            found.append(result)
        lines += verdict(target, found, results.get(FIRST.get(target, "")))
        tables.append(table(target, found))
        results[target] = found
        # After every target: what is finished is kept where a later one fails.
        table_of = {name: [kept(result) for result in each] for name, each in results.items()}
        save(options.out, {"benchmark": "shift", "bed": options.bed, "verdict": lines, "targets": table_of})
        title = f"# Distribution control, {options.bed}: {options.repeats} repeats of the whole procedure"
        parts = [title, "\n".join(f"- {line}" for line in lines), *tables]
        options.out.with_suffix(".md").write_text("\n\n".join(parts) + "\n")
    print("\n\n".join(["\n".join(lines), *tables]))


if __name__ == "__main__":
    main()
