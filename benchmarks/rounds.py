"""Rounds of self-improvement: the distilled model is the next round's base.

    python benchmarks/rounds.py --recipe digits --out benchmarks/results/rounds-digits.json

All rounds are run, also those that the rule would have stopped, so that its verdict can be checked.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from common import improved, save
from sims.cli import parse
from sims.methods import BASE, HEIR, LEADER
from sims.results.summaries import to_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="digits")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    settings, extra = parser.parse_known_args()
    options = parse("improve", ["--recipe", settings.recipe, *extra])
    options = replace(options, rounds=settings.rounds, keep_going=True, methods=(BASE.name, LEADER.name, HEIR.name))
    result = improved(options)
    for entry in result.rounds:
        print(f"round {entry.round}: {entry.reason}")
        for row in entry.rows:
            train, test, near, recall = (row.mean(n) for n in ("fd", "fd_held_out", "distance_ratio", "recall"))
            print(f"  {row.label:<14} w {row.w:<5g} FD train {train:.2f}  FD test {test:.2f}  "
                  f"nearest {near:.3f}  recall {recall:.3f}")  # fmt: skip
    save(settings.out, {"benchmark": "rounds", "recipe": settings.recipe, "rounds": to_json(result.rounds),
                        "floor": to_json(result.floor), "extractor": to_json(result.extractor)})  # fmt: skip


if __name__ == "__main__":
    main()
