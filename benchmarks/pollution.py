"""Pollution: real data with 0 to 200 % of an earlier model's samples; standard training against SIMS.

    python benchmarks/pollution.py --bed digits --repeats 3 --out benchmarks/results/pollution-digits.json

Beds: digits (bundled), cifar10-8x8 (--data FOLDER with train and test parquet files). The experiment is `sims
pollution`; it prints its progress, an interrupted benchmark continues, and a higher --repeats adds to what is there.
What has to hold: SIMS is significantly better than standard training at every level above 0 (FD to train and to test,
paired over repeats), its FD to train is at most 1.1 times the clean first generation's up to 100 %, and the strength
chosen by at most 100 trusted images is within 10 % of the oracle's FD.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path

from common import figure, save
from sims.methods.sims import SIMS
from sims.results.common import Interval
from sims.results.loop import PollutionResult
from sims.results.summaries import read_result, to_json

BEDS = {
    "digits": "--auxiliary.budgets 128000 --strengths 0.5,1,1.5,2,2.5,3,4,5",
    "cifar10-8x8": "--data.source.grayscale --data.source.size 8 --base.images 1536000 --evaluation.samples 10000 "
    "--auxiliary.samples 20000 --auxiliary.budgets 512000 --strengths 0.5,1,1.5,2,2.5,3,4",
}
ALLOWED = 1.1  # times the clean first generation's FD to train
NEAR = 1.1  # times the oracle's FD


def command(options: argparse.Namespace, extra: list[str]) -> list[str]:
    words = [sys.executable, "-m", "sims", "pollution", "--run", str(options.run), *shlex.split(BEDS[options.bed])]
    words += ["--repeats", str(options.repeats), "--jobs", str(options.jobs), "--trusted", "100"]
    if options.data:
        words += ["--data.path", options.data]
    return [*words, *extra]


def verdict(result: PollutionResult) -> list[str]:
    """Which of the bounds hold, in words."""
    lines = []
    for entry in result.comparisons:
        if entry.a != SIMS.name or entry.figure not in ("fd", "fd_held_out") or entry.level == 0:
            continue
        change = entry.change_percent or Interval(0.0, 0.0, 0.0)
        mark = "holds" if entry.better else "FAILS"
        text = f"{mark}: +{entry.level:g} %, {entry.figure}: {entry.means[1]:.2f} -> {entry.means[0]:.2f}"
        lines.append(f"{text} ({change.mean:+.1f} % [{change.low:+.1f}, {change.high:+.1f}])")
        if entry.figure == "fd" and entry.level <= 100 and entry.over_clean is not None:
            over = entry.over_clean.mean
            lines.append(f"{'holds' if over <= ALLOWED else 'FAILS'}: {over:.2f} times the clean first generation's FD")
    found = result.trusted[SIMS.name]
    for level, row in zip(result.levels, found.ratio):
        mean = sum(row) / len(row)
        mark = "holds" if mean <= NEAR else "FAILS"
        lines.append(f"{mark}: +{level:g} %: w by {found.size} trusted images gives {mean:.3f} times the oracle's FD")
    return lines


def table(result: PollutionResult) -> str:
    """FD to train and test of every arm at every level, mean over repeats with their range."""
    lines = ["| synthetic | " + " | ".join(f"{arm.name}: FD train / test" for arm in result.arms) + " |"]
    lines.append("|" + "---|" * (len(result.arms) + 1))
    for level, percent in enumerate(result.levels):
        cells = []
        for arm in result.arms:
            parts = []
            for figure_name in ("fd", "fd_held_out"):
                values = result.curves[figure_name][arm.name][level]
                parts.append(f"{sum(values) / len(values):.2f} ({min(values):.2f}–{max(values):.2f})")
            cells.append(" / ".join(parts))
        lines.append(f"| +{percent:g} % | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def reliability(result: PollutionResult) -> str:
    """How near the rule comes to the oracle's FD with other numbers of trusted images."""
    found = result.trusted[SIMS.name].reliability  # level -> size -> repeat
    lines = ["| trusted images | " + " | ".join(f"+{level:g} %" for level in result.levels) + " |"]
    lines.append("|" + "---|" * (len(result.levels) + 1))
    for entries in zip(*found):
        cells = []
        for repeats in entries:
            mean = sum(entry.ratio for entry in repeats) / len(repeats)
            within = sum(entry.within_10_percent for entry in repeats) / len(repeats)
            cells.append(f"{mean:.2f} x, {within:.0%} within 10 %")
        lines.append(f"| {entries[0][0].size} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bed", choices=sorted(BEDS), required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="repeats at once, one thread each")
    parser.add_argument("--data", help="data set of the bed cifar10-8x8")
    parser.add_argument("--run", type=Path, help="run directory (default: runs/pollution-BED)")
    parser.add_argument("--out", type=Path, required=True)
    options, extra = parser.parse_known_args()  # further options go to the experiment
    options.run = options.run or Path(f"runs/pollution-{options.bed}")
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    subprocess.run(command(options, extra), env=environment, check=True)
    result = read_result(options.run, PollutionResult)
    lines = verdict(result)
    save(options.out, {"benchmark": "pollution", "bed": options.bed, "verdict": lines, "summary": to_json(result)})
    title = f"# {options.bed}, polluted: {result.repeats} repeats of the whole procedure"
    parts = [title, "\n".join(f"- {line}" for line in lines), table(result), reliability(result)]
    options.out.with_suffix(".md").write_text("\n\n".join(parts) + "\n")
    names = {"FD to the clean training images": "fd", "FD to the test images": "fd_held_out"}
    panels = {title: result.curves[name] for title, name in names.items()}
    figure(options.out.with_suffix(".svg"), panels, result.levels, "synthetic samples, % of the real images")
    print("\n\n".join(parts[1:]))


if __name__ == "__main__":
    main()
