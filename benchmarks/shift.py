"""Distribution control on the digits: every target, several repeats of the whole procedure, the bounds that must hold.

    python benchmarks/shift.py --repeats 3 --out benchmarks/results/shift-digits.json

Targets: uniform (zeros cut to 2 % of the base's training data), thirty (one class at 30 %), joint (parity x loop), rare
(zeros from 2 % to 30 %). The experiment is `sims shift`, a run directory for each target and repeat: an interrupted
benchmark continues, and a higher --repeats adds to what is there. Further options go to the experiment.
What has to hold, by the judge, in every repeat of the first three: total variation to the target at most 0.035, its
upper bound at most 0.045, and a lower FD to the reweighted real data than the base's. In the mean over repeats, with
cached or distilled guidance: at least 3 times fewer evaluations per delivered sample than rejection at equal error for
2 % -> 10 %, at least 10 times fewer for 2 % -> 30 %.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import save

PARITY = "parity:even=0+2+4+6+8/odd=1+3+5+7+9"
LOOP = "loop:loop=0+6+8+9/open=1+2+3+4+5+7"
TARGETS = {
    "uniform": "--imbalance 0=0.02 --target uniform",
    "thirty": "--target 0=0.3,*=0.7",
    "joint": f"--attributes {PARITY},{LOOP} --target even,loop=0.4,even,open=0.1,odd,loop=0.2,odd,open=0.3",
    "rare": "--imbalance 0=0.02 --target 0=0.3,*=0.7 --solver.max-w 8 --auxiliary.images 1024000",
}
BOUND, UPPER = 0.035, 0.045
TIMES = {"uniform": 3.0, "rare": 10.0}
CHEAP = ("steered (cached)", "distilled")


def command(options: argparse.Namespace, target: str, repeat: int, extra: list[str]) -> list[str]:
    folder = options.run / target / f"{repeat:02d}"
    words = [sys.executable, "-m", "sims", "shift", "--run", str(folder), "--seed", str(repeat)]
    return [*words, *shlex.split(TARGETS[target]), *extra]


def verdict(target: str, summaries: list[dict[str, Any]]) -> list[str]:
    """Which of the bounds hold, in words."""
    lines = []
    for repeat, summary in enumerate(summaries):
        rows = {row["label"]: row for row in summary["rows"]}
        base, steered = rows["base"], rows["steered"]
        tv, before = steered["proportions"]["tv"], base["proportions"]["tv"]["value"]
        fd, old = steered["fd_target"]["mean"], base["fd_target"]["mean"]
        holds = tv["value"] <= BOUND and tv["high"] <= UPPER and fd < old
        mark = ("holds" if holds else "FAILS") if target != "rare" else "measured"
        text = f"TV {before:.3f} -> {tv['value']:.3f} [{tv['low']:.3f}, {tv['high']:.3f}], FD {old:.2f} -> {fd:.2f}"
        lines.append(f"{mark}: {target}, repeat {repeat}: {text} (n = {steered['n']:,}, w = {steered['w']:.2f})")
        lines += [f"note: {target}, repeat {repeat}: {warning}" for warning in summary["warnings"]]
    if target in TIMES:
        for label in CHEAP:
            found = [entry for s in summaries for entry in s["costs"] if entry["label"] == label]
            if not found:
                continue
            times = statistics.mean(entry["rejection_at_equal_error"]["times"] for entry in found)
            numbers = [entry["rejection_at_equal_error"]["break_even"] for entry in found]
            even = ", ".join("never" if n is None else f"{n:,}" for n in numbers)
            mark = "holds" if times >= TIMES[target] else "FAILS"
            lines.append(
                f"{mark}: {target}, {label}: {times:.1f} times fewer evaluations per sample than rejection at equal "
                f"error (wanted: {TIMES[target]:g}); break-even at {even}"
            )
    return lines


def table(target: str, summaries: list[dict[str, Any]]) -> str:
    """Every contender: mean over repeats, with the range."""
    lines = ["| " + target + " | TV to target | FD to reweighted train / test | evaluations per sample | making it |"]
    lines.append("|---|---|---|---|---|")
    for label in [row["label"] for row in summaries[0]["rows"]]:
        rows = [row for summary in summaries for row in summary["rows"] if row["label"] == label]
        parts: list[str] = []
        for values in (
            [row["proportions"]["tv"]["value"] for row in rows],
            [row["fd_target"]["mean"] for row in rows],
            [row["fd_test_target"]["mean"] for row in rows if "fd_test_target" in row],
            [row["nfe"] for row in rows],
        ):
            digits = 3 if not parts else 2
            text = f"{statistics.mean(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"
            parts.append(text if values else "–")
        made = statistics.mean(row["cost"]["total"] for row in rows)
        lines.append(f"| {label} | {parts[0]} | {parts[1]} / {parts[2]} | {parts[3]} | {made:,.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", default=",".join(TARGETS), help="which targets, with commas")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--run", type=Path, default=Path("runs/shift-digits"), help="run directories lie here")
    parser.add_argument("--out", type=Path, required=True)
    options, extra = parser.parse_known_args()
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    lines: list[str] = []
    tables, results = [], {}
    for target in options.targets.split(","):
        found = []
        for repeat in range(options.repeats):
            words = command(options, target, repeat, extra)
            subprocess.run(words, env=environment, check=True)
            found.append(json.loads((options.run / target / f"{repeat:02d}/summary.json").read_text()))
        lines += verdict(target, found)
        tables.append(table(target, found))
        results[target] = found
        # After every target: what is finished is kept where a later one fails.
        save(options.out, {"benchmark": "shift", "verdict": lines, "targets": results})
        title = f"# Distribution control on the digits: {options.repeats} repeats of the whole procedure"
        parts = [title, "\n".join(f"- {line}" for line in lines), *tables]
        options.out.with_suffix(".md").write_text("\n\n".join(parts) + "\n")
    print("\n\n".join(["\n".join(lines), *tables]))


if __name__ == "__main__":
    main()
