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
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import figure, save

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


def verdict(summary: dict[str, Any]) -> list[str]:
    """Which of the bounds hold, in words."""
    lines = []
    for entry in summary["comparisons"]:
        if entry["a"] != "sims" or entry["metric"] not in ("fd", "fd_held_out") or entry["level"] == 0:
            continue
        change = entry.get("change_percent", {"mean": 0, "low": 0, "high": 0})
        mark = "holds" if entry.get("better") else "FAILS"
        text = f"{mark}: +{entry['level']:g} %, {entry['metric']}: {entry['mean'][1]:.2f} -> {entry['mean'][0]:.2f}"
        lines.append(f"{text} ({change['mean']:+.1f} % [{change['low']:+.1f}, {change['high']:+.1f}])")
        if entry["metric"] == "fd" and entry["level"] <= 100:
            over = entry["over_clean"]["mean"]
            lines.append(f"{'holds' if over <= ALLOWED else 'FAILS'}: {over:.2f} times the clean first generation's FD")
    found = summary["trusted"]["sims"]
    for level, row in zip(summary["levels"], found["ratio"]):
        mean = sum(row) / len(row)
        mark = "holds" if mean <= NEAR else "FAILS"
        lines.append(
            f"{mark}: +{level:g} %: w by {found['size']} trusted images gives {mean:.3f} times the oracle's FD"
        )
    return lines


def table(summary: dict[str, Any]) -> str:
    """FD to train and test of every arm at every level, mean over repeats with their range."""
    names = [arm["name"] for arm in summary["arms"]]
    lines = ["| synthetic | " + " | ".join(f"{name}: FD train / test" for name in names) + " |"]
    lines.append("|" + "---|" * (len(names) + 1))
    for level, percent in enumerate(summary["levels"]):
        cells = []
        for name in names:
            parts = []
            for metric in ("fd", "fd_held_out"):
                values = summary["table"][metric][name][level]
                parts.append(f"{sum(values) / len(values):.2f} ({min(values):.2f}–{max(values):.2f})")
            cells.append(" / ".join(parts))
        lines.append(f"| +{percent:g} % | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def reliability(summary: dict[str, Any]) -> str:
    """How near the rule comes to the oracle's FD with other numbers of trusted images."""
    found = summary["trusted"]["sims"]
    lines = ["| trusted images | " + " | ".join(f"+{level:g} %" for level in summary["levels"]) + " |"]
    lines.append("|" + "---|" * (len(summary["levels"]) + 1))
    for index, size in enumerate(found["sizes"]):
        cells = []
        for row in found["reliability"]:
            entries = row[index]
            mean, within = (sum(e[key] for e in entries) / len(entries) for key in ("ratio", "within_10_percent"))
            cells.append(f"{mean:.2f} x, {within:.0%} within 10 %")
        lines.append(f"| {size} | " + " | ".join(cells) + " |")
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
    summary = json.loads((options.run / "summary.json").read_text())
    lines = verdict(summary)
    save(options.out, {"benchmark": "pollution", "bed": options.bed, "verdict": lines, "summary": summary})
    title = f"# {options.bed}, polluted: {summary['repeats']} repeats of the whole procedure"
    parts = [title, "\n".join(f"- {line}" for line in lines), table(summary), reliability(summary)]
    options.out.with_suffix(".md").write_text("\n\n".join(parts) + "\n")
    names = {"FD to the clean training images": "fd", "FD to the test images": "fd_held_out"}
    panels = {title: summary["table"][name] for title, name in names.items()}
    figure(options.out.with_suffix(".svg"), panels, summary["levels"], "synthetic samples, % of the real images")
    print("\n\n".join(parts[1:]))


if __name__ == "__main__":
    main()
