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
from sims.experiments.loop.jobs import loop
from sims.experiments.loop.options import LoopOptions, toy_defaults
from sims.experiments.loop.point_loop import GROUP
from sims.experiments.loop.remedies import EQUAL, STANDARD, arm_of
from sims.experiments.loop.replica_group import ReplicaGroup
from sims.methods.sims import SIMS
from sims.results.loop import LoopResult
from sims.results.summaries import to_json

RESULTS = Path(__file__).parent / "results"
ARMS = (arm_of(STANDARD), arm_of(EQUAL), arm_of(SIMS.name, 1.5))
KINDS = ("augmentation", "fully-synthetic", "fresh", "accumulate")


def seconds_of(options: LoopOptions, replicas: tuple[int, ...], generations: int) -> tuple[float, float]:
    """Wall-clock and processor seconds per generation after generation 0, which loads what is loaded once."""
    ends: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        group = ReplicaGroup(options, Path(folder), ARMS, replicas, generations)
        group.run(lambda count: ends.append((time.perf_counter(), time.process_time())))
    return tuple((ends[-1][kind] - ends[0][kind]) / generations for kind in (0, 1))  # type: ignore[return-value]


def speed(arguments: argparse.Namespace, options: LoopOptions) -> dict[str, Any]:
    """One network for GROUP replicas against one network after another, in turn, so that a busy machine slows both."""
    together, alone = [], []
    for turn in range(arguments.rounds):
        together.append(seconds_of(options, tuple(range(GROUP)), 1))
        alone.append(seconds_of(options, (turn,), 1))
        print(f"round {turn}: {GROUP} at once {together[-1]}, one alone {alone[-1]}")
    result: dict[str, Any] = {"replicas": GROUP, "arms": [arm.name for arm in ARMS], "rounds": arguments.rounds}
    for kind, name in enumerate(("wall", "processor")):
        many, one = (float(np.median([entry[kind] for entry in rows])) for rows in (together, alone))
        result[f"{name}_seconds_at_once"], result[f"{name}_seconds_alone"] = many, one
        result[f"{name}_speedup"] = GROUP * one / many
    return result


def row_of(result: LoopResult) -> dict[str, Any]:
    """What is kept of a loop: mean distances and their standard errors, verdicts, and how w was chosen."""
    assert result.floor is not None
    (figure,) = result.floor.values
    curves = {name: np.array(curve) for name, curve in result.curves[figure].items()}
    return {
        "kind": result.kind,
        "headline": result.headline,
        "floor": result.floor.values,
        "selection": to_json(result.selection),
        "judged": to_json(result.judged),
        "distance": {name: np.round(curve.mean(axis=1), 5).tolist() for name, curve in curves.items()},
        "standard_error": {
            name: np.round(curve.std(axis=1, ddof=1) / np.sqrt(curve.shape[1]), 5).tolist()
            for name, curve in curves.items()
        },
        "verdicts": to_json(result.verdicts),
        "costs": {arm.name: {**vars(arm.cost), "nfe": arm.nfe} for arm in result.arms},
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
        begin = time.perf_counter()
        result = loop(override(base, {"kind": kind, "run": str(arguments.folder / name)}))
        seconds = time.perf_counter() - begin
        rows.append({**row_of(result), "seconds": round(seconds, 1)})
        spent += seconds
        if spent > arguments.budget:
            break
    settings = to_dict(base)
    settings.pop("run")
    suffix = f"-seed{arguments.seed}" if arguments.seed else ""
    save(RESULTS / f"loops-{arguments.what}-{arguments.data}{suffix}.json", {"loops": rows, "settings": settings})


if __name__ == "__main__":
    main()
