"""Ten generations of the bundled digits, real digits and the last generation's samples: standard training, SIMS, Neon.

    python benchmarks/loop_digits.py --repeats 3 --out benchmarks/results/loop-digits.json

The base of every generation is trained as long as the main job's (5,000 steps of 256). The experiment is `sims loop`;
it prints its progress, an interrupted benchmark continues, and a higher --repeats adds to what is there. What has to
hold: standard training is significantly worse than its generation 0. The verdict on SIMS is stated, with its cost.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from common import figure, save
from sims.results.loop import LoopResult, Verdicts
from sims.results.summaries import read_result, to_json


def verdict(result: LoopResult) -> list[str]:
    """Every verdict of the loop in words, and what each arm cost."""
    lines = [result.headline]
    for arm in result.arms:
        found = result.verdicts.get(arm.name, Verdicts())
        for kind, entry in (("mad", found.mad), ("weak", found.weak), ("strong", found.strong)):
            if entry:
                lines.append(f"{arm.name}, {kind} ({'holds' if entry.holds else 'does not hold'}): {entry.text}")
        images, evaluations = arm.cost.images / 1e6, arm.cost.evaluations / 1e6
        lines.append(f"{arm.name}: {images:.1f} M training images, {evaluations:.0f} M evaluations, NFE {arm.nfe:g}")
    return lines


def table(result: LoopResult) -> str:
    """FD to train / test of every arm in every generation, mean over repeats."""
    lines = ["| generation | " + " | ".join(arm.label for arm in result.arms) + " |"]
    lines.append("|" + "---|" * (len(result.arms) + 1))
    for generation in range(result.generations + 1):
        cells = []
        for arm in result.arms:
            values = [result.curves[figure][arm.name][generation] for figure in ("fd", "fd_held_out")]
            cells.append(" / ".join(f"{sum(row) / len(row):.2f}" for row in values))
        lines.append(f"| {generation} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="repeats at once, one thread each")
    parser.add_argument("--run", type=Path, default=Path("runs/loop-digits"))
    parser.add_argument("--out", type=Path, required=True)
    options, extra = parser.parse_known_args()  # further options go to the loop
    words = [sys.executable, "-m", "sims", "loop", "--run", str(options.run), "--repeats", str(options.repeats)]
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    subprocess.run([*words, "--jobs", str(options.jobs), *extra], env=environment, check=True)
    result = read_result(options.run, LoopResult)
    lines = verdict(result)
    save(options.out, {"benchmark": "loop_digits", "verdict": lines, "summary": to_json(result)})
    text = [f"# Digits, {result.generations} generations: {result.repeats} repeats of the whole procedure"]
    parts = [*text, "\n".join(f"- {line}" for line in lines), table(result)]
    options.out.with_suffix(".md").write_text("\n\n".join(parts) + "\n")
    names = {"FD to the training images": "fd", "FD to the test images": "fd_held_out"}
    panels = {title: result.curves[name] for title, name in names.items()}
    figure(options.out.with_suffix(".svg"), panels, range(result.generations + 1), "generation")
    print("\n\n".join(parts[1:]))


if __name__ == "__main__":
    main()
