"""What a dry run says, against what the run then takes: time and peak memory, by stage and in all.

    python benchmarks/estimates.py --data FOLDER [--sizes digits cifar10-8x8 cifar10-32] [--repeats 3]

Of each size: the dry run, then the run itself, in processes of their own, several times. FOLDER holds CIFAR-10 as
parquet files named train and test. The jobs are those of the recipes, shortened to minutes. Memory is the highest
resident memory of the process by the end of a stage; on a GPU, what its tensors held at most. ``--clock cpu`` compares
processor time instead, for a machine that does other things as well (one thread only).
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from common import save

RESULT = Path(__file__).parent / "results" / "estimates.json"
_SHORT = "--auxiliary.budgets 64000,128000 --search.rungs 400,1000 --search.limit 12000 --distilled.images 64000"
SIZES = {
    "digits": f"--recipe digits --base.images 640000 {_SHORT} --evaluation.draws 2",
    "cifar10-8x8": f"--recipe cifar10-8x8 --base.images 640000 {_SHORT} --evaluation.draws 1 --evaluation.samples 5000",
    "cifar10-32": "--recipe cifar10-20min --data.limit 2000 --evaluation.no-check --network.width 16 --sampler.steps 9 "
    "--base.images 15000 --auxiliary.samples 200 --auxiliary.budgets 2000,4000 --search.rungs 40,80 --search.limit 800 "
    "--distilled.samples 200 --distilled.images 4000 --evaluation.draws 1 --evaluation.samples 200 --batch-size 100",
}
OTHER = "start, report"  # what the run does not time


def child(kind: str, clock: str, words: list[str], out: Path) -> None:
    """In a process of its own: the dry run or the run, and what it said or took."""
    begin = time.perf_counter()
    if clock == "cpu":
        time.monotonic = time.perf_counter = time.process_time  # type: ignore[assignment]
        begin = 0.0
    from sims.cli import parse
    from sims.config import override
    from sims.experiments.cost.table import Estimate
    from sims.experiments.improve.job import improve
    from sims.runs.clock import Clock

    stages: list[tuple[str, float, int]] = []
    timed = Clock.stage

    @contextmanager
    def noted(self: Clock, name: str) -> Iterator[None]:
        entered = time.perf_counter()
        with timed(self, name):
            yield
        stages.append((name, time.perf_counter() - entered, peak()))

    Clock.stage = noted  # type: ignore[method-assign]
    found = improve(override(parse("improve", words), {"dry_run": kind == "plan"}), quiet=True)
    spent = time.perf_counter() - begin
    entry: dict[str, Any] = {"seconds": spent, "peak": peak(), "stages": stages}
    if isinstance(found, Estimate):
        stages_ = [{"stage": work.stage, "seconds": found.seconds(work)} for work in found.work]
        entry["plan"] = {"work": stages_, "memory": found.memory, "seconds": found.total, "notes": found.notes}
    else:
        chosen = found.search.chosen if found.search else {}
        entry["searched"] = {name: choice.samples for name, choice in chosen.items()}
    out.write_text(json.dumps(entry))


def peak() -> int:
    """Bytes held at most so far."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def start(kind: str, clock: str, words: list[str], folder: Path) -> dict[str, Any]:
    """Run a child and read what it left."""
    out = folder / f"{kind}.json"
    command = [sys.executable, __file__, "--child", kind, "--clock", clock, "--out", str(out), "--", *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads(out.read_text())


def compare(plan: dict[str, Any], run: dict[str, Any]) -> list[dict[str, Any]]:
    """A row per stage: predicted and actual seconds, and the last in all."""
    actual: dict[str, float] = {}
    for name, seconds, _ in run["stages"]:
        actual[name] = actual.get(name, 0.0) + seconds
    predicted = {work["stage"]: work["seconds"] for work in plan["work"]}
    rows = [{"stage": name, "predicted": predicted.get(name, 0.0), "actual": spent} for name, spent in actual.items()]
    rest = sum(seconds for name, seconds in predicted.items() if name not in actual)
    rows.append({"stage": OTHER, "predicted": rest, "actual": run["seconds"] - sum(actual.values())})
    rows.append({"stage": "in all", "predicted": plan["seconds"], "actual": run["seconds"]})
    return [{**row, "ratio": round(row["predicted"] / row["actual"], 3) if row["actual"] else None} for row in rows]


def memory(plan: dict[str, Any], run: dict[str, Any]) -> list[dict[str, Any]]:
    """A row per stage whose memory is predicted: the highest by its end, as predicted and as it was."""
    rows, highest, ends = [], 0, {name: held for name, _, held in run["stages"]} | {"sample": run["peak"]}
    for stage, predicted in plan["memory"].items():
        highest = max(highest, predicted)
        if actual := ends.get(stage):
            rows.append({"stage": stage, "predicted": highest, "actual": actual, "ratio": round(highest / actual, 3)})
    return rows


def table(rows: list[dict[str, Any]], unit: float) -> str:
    lines = [f"  {'':<30}{'predicted':>12}{'actual':>12}{'ratio':>8}"]
    for r in rows:
        lines.append(
            f"  {r['stage']:<30}{r['predicted'] / unit:>12.1f}{r['actual'] / unit:>12.1f}{r['ratio'] or 0:>8.2f}"
        )
    return "\n".join(lines)


def size(name: str, words: list[str], repeats: int, clock: str) -> dict[str, Any]:
    """All repeats of one size."""
    found = []
    for index in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            given = [*words, "--run", f"{folder}/run"]
            planned, run = (start(kind, clock, given, Path(folder)) for kind in ("plan", "run"))
        entry = {"pilot_seconds": planned["seconds"], "time": compare(planned["plan"], run)}
        entry |= {"memory": memory(planned["plan"], run), "notes": planned["plan"]["notes"]}
        found.append({**entry, "searched": run["searched"]})
        print(f"{name}, run {index + 1} (pilot {planned['seconds']:.0f} s)\n seconds\n{table(entry['time'], 1.0)}\n"
              f" MB\n{table(entry['memory'], 1e6)}", flush=True)  # fmt: skip
    ratios = {kind: [run[kind][-1]["ratio"] for run in found] for kind in ("time", "memory")}
    medians = {kind: statistics.median(values) for kind, values in ratios.items()}
    within = {kind: abs(median - 1) <= 0.25 for kind, median in medians.items()}
    print(f"{name}: median ratios {medians}, within 25 %: {within}", flush=True)
    return {"options": words, "ratios": ratios, "median": medians, "within_25_percent": within, "runs": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of CIFAR-10")
    parser.add_argument("--sizes", nargs="+", choices=sorted(SIZES), default=["digits", "cifar10-32"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--child", choices=["plan", "run"], help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULT)
    options, words = parser.parse_known_args()
    if options.child:
        return child(options.child, options.clock, [word for word in words if word != "--"], options.out)
    sizes = {}
    for name in options.sizes:
        given = ["--data.path", options.data] if name != "digits" else []
        sizes[name] = size(name, [*SIZES[name].split(), *given], options.repeats, options.clock)
    save(options.out, {"benchmark": "estimates", "repeats": options.repeats, "clock": options.clock, "sizes": sizes})


if __name__ == "__main__":
    main()
