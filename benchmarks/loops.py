"""Two-dimensional loops: what training replicas at once saves, and the table of loop kinds and strengths.

python benchmarks/loops.py speed                        # replicas at once against one after another
python benchmarks/loops.py main                         # 100 generations, 20 replicas, one strength: the main claim
python benchmarks/loops.py table --generations 30       # all kinds of loops, several strengths

`main` and `table` keep their runs in --folder and continue what was interrupted; --budget (seconds) ends `table` after
the loop that exceeds it. The settings are those of `toy_defaults`; SETTINGS of a result says what was changed.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from common import save
from sims.config import override, to_dict
from sims.experiments.loop.models import Arm
from sims.experiments.loop.options import EQUAL, STANDARD, LoopOptions, toy_defaults
from sims.experiments.loop.point_loop import PIECE, run_replicas
from sims.experiments.loop.repeats import configuration
from sims.experiments.loop.replica_group import Piece, Task
from sims.files import read_json
from sims.runs.directory import Run

RESULTS = Path(__file__).parent / "results"
ARMS = (Arm(STANDARD, STANDARD), Arm(EQUAL, EQUAL), Arm("sims", "sims", 1.5))
KINDS = ("augmentation", "fully-synthetic", "fresh", "accumulate")


def seconds_of(options: LoopOptions, replicas: tuple[int, ...], generations: int) -> tuple[float, float]:
    """Wall-clock and processor seconds per generation after generation 0, which loads what is loaded once."""
    ends: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        piece = Piece(Task(options, Path(folder), ARMS, replicas, generations))
        piece.run(lambda count: ends.append((time.perf_counter(), time.process_time())))
    return tuple((ends[-1][kind] - ends[0][kind]) / generations for kind in (0, 1))  # type: ignore[return-value]


def speed(arguments: argparse.Namespace, options: LoopOptions) -> dict[str, Any]:
    """One network for PIECE replicas against one network after another, in turn, so that a busy machine slows both."""
    together, alone = [], []
    for turn in range(arguments.rounds):
        together.append(seconds_of(options, tuple(range(PIECE)), 1))
        alone.append(seconds_of(options, (turn,), 1))
        print(f"round {turn}: {PIECE} at once {together[-1]}, one alone {alone[-1]}")
    result: dict[str, Any] = {"replicas": PIECE, "arms": [arm.name for arm in ARMS], "rounds": arguments.rounds}
    for kind, name in enumerate(("wall", "processor")):
        many, one = (float(np.median([entry[kind] for entry in rows])) for rows in (together, alone))
        result[f"{name}_seconds_at_once"], result[f"{name}_seconds_alone"] = many, one
        result[f"{name}_speedup"] = PIECE * one / many
    return result


def summary_of(options: LoopOptions) -> tuple[dict[str, Any], float]:
    """The summary of a loop, run or read, and the seconds it has taken here."""
    begin = time.perf_counter()
    file = options.run / "summary.json"
    if file.is_file():
        return read_json(file), 0.0
    run = Run(options.run, configuration(options))
    try:
        return run_replicas(options, run), time.perf_counter() - begin
    finally:
        run.close()


def row_of(summary: dict[str, Any]) -> dict[str, Any]:
    """What a result keeps of a loop: mean distances and their standard errors, verdicts, and how w was chosen."""
    figure = next(iter(summary["floor"]))
    curves = {name: np.array(curve) for name, curve in summary["curves"][figure].items()}
    return {
        "kind": summary["kind"],
        "conclusion": summary["conclusion"],
        "floor": summary["floor"],
        "selection": summary["selection"],
        "judged": summary["judged"],
        "distance": {name: np.round(curve.mean(axis=1), 5).tolist() for name, curve in curves.items()},
        "standard_error": {
            name: np.round(curve.std(axis=1, ddof=1) / np.sqrt(curve.shape[1]), 5).tolist()
            for name, curve in curves.items()
        },
        "verdicts": summary["verdicts"],
        "costs": {arm["name"]: arm["cost"] for arm in summary["arms"]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "main", "table"))
    parser.add_argument("--folder", type=Path, default=Path("runs/loops"))
    parser.add_argument("--data", default="gaussian", choices=("gaussian", "mixture"))
    parser.add_argument("--generations", type=int, default=100)
    parser.add_argument("--replicas", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=1, help="groups of replicas computed at once, in processes")
    parser.add_argument("--w", type=float, nargs="+", help="default: 1.5 (main); 0.5 1 1.5 2 (table)")
    parser.add_argument("--seed", type=int, default=0, help="other seeds write results of their own")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds")
    arguments = parser.parse_args()
    strengths = arguments.w or ([1.5] if arguments.what == "main" else [0.5, 1.0, 1.5, 2.0])
    base = override(toy_defaults(arguments.data), {"generations": arguments.generations})
    base = override(
        base, {"repeats": arguments.replicas, "w": strengths, "jobs": arguments.jobs, "seed": arguments.seed}
    )
    if arguments.what == "speed":
        save(RESULTS / "loops-speed.json", {**speed(arguments, base), "settings": to_dict(base)})
        return
    rows, spent = [], 0.0
    for kind in KINDS if arguments.what == "table" else KINDS[:1]:
        sizes = f"{arguments.generations}-{arguments.replicas}-{arguments.seed}"
        name = f"{arguments.what}-{arguments.data}-{kind}-{sizes}"
        summary, seconds = summary_of(override(base, {"kind": kind, "run": str(arguments.folder / name)}))
        rows.append({**row_of(summary), "seconds": round(seconds, 1)})
        print(f"{kind}: {summary['conclusion']}")
        spent += seconds
        if spent > arguments.budget:
            break
    settings = to_dict(base)
    settings.pop("run")
    suffix = f"-seed{arguments.seed}" if arguments.seed else ""
    save(RESULTS / f"loops-{arguments.what}-{arguments.data}{suffix}.json", {"loops": rows, "settings": settings})


if __name__ == "__main__":
    main()
