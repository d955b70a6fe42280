"""Rounds of self-improvement: the distilled model is the next round's base.

    python benchmarks/rounds.py --recipe digits --out benchmarks/results/rounds-digits.json

All rounds are run, also those that the rule would have stopped, so that its verdict can be checked.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from common import save
from sims.cli import parse
from sims.experiments.improve.job import improve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="digits")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    settings, extra = parser.parse_known_args()
    options = parse("improve", ["--recipe", settings.recipe, *extra])
    options = replace(options, rounds=settings.rounds, keep_going=True, methods=("base", "sims", "distilled"))
    summary = improve(options)
    for entry in summary["rounds"]:
        print(f"round {entry['round']}: {entry['reason']}")
        for row in entry["rows"]:
            train, test = row["fd"], row["fd_held_out"]
            print(f"  {row['label']:<14} w {row['w']:<5g} FD train {train['mean']:.2f}  FD test {test['mean']:.2f}  "
                  f"nearest {row['distance_ratio']['mean']:.3f}  recall {row['recall']['mean']:.3f}")  # fmt: skip
    save(settings.out, {"benchmark": "rounds", "recipe": settings.recipe, "rounds": summary["rounds"],
                        "floor": summary["floor"], "extractor": summary["extractor"]})  # fmt: skip


if __name__ == "__main__":
    main()
