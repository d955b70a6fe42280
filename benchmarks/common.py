"""What the benchmarks share: where results go, and what they say about the machine they ran on."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from sims.experiments.improve.job import improve
from sims.experiments.options import ImproveOptions
from sims.metrics.intervals import t_interval
from sims.results.common import Row
from sims.results.improve import ImproveResult


def machine() -> str:
    """The hardware in words."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, {os.cpu_count()} CPU cores"
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{platform.machine()} CPU ({capability}), {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def save(file: Path, result: dict[str, Any]) -> None:
    """Write a result with date, machine, versions and command."""
    about = {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "command": " ".join(["python", *sys.argv]),
        "torch": torch.__version__,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({**about, **result}, indent=1) + "\n")
    print(f"written: {file}")


def improved(options: ImproveOptions, quiet: bool = False) -> ImproveResult:
    """The result of a whole improvement."""
    result = improve(options, quiet=quiet)
    assert isinstance(result, ImproveResult)
    return result


def flat(row: Row) -> dict[str, Any]:
    """A row as one table: what it is, and every figure."""
    about = {"label": row.label, "w": row.w, "budget": row.budget, "nfe": row.nfe}
    return {**about, **{name: asdict(value) for name, value in row.figures.items()}}


def interleaved(rivals: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each rival, run in turn so that a busy machine slows all of them alike."""
    times: dict[str, list[float]] = {name: [] for name in rivals}
    for work in rivals.values():
        work()  # warm up
    for _ in range(rounds):
        for name, work in rivals.items():
            begin = time.perf_counter()
            work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in times.items()}


Curves = Mapping[str, Sequence[Sequence[float]]]  # name -> values of every repeat, at every place
COLOURS = ("#555555", "#e69f00", "#0072b2", "#009e73", "#d55e00", "#cc79a7", "#56b4e9")


def figure(file: Path, panels: Mapping[str, Curves], places: Sequence[float], what: str) -> None:
    """A panel of curves each: the mean over repeats with its 95 % t-interval, against ``places`` (``what``). SVG."""
    fig = Figure(figsize=(4.5 * len(panels), 3.6), layout="constrained")
    for axis, (title, curves) in zip(fig.subplots(1, len(panels), squeeze=False)[0], panels.items()):
        for colour, (name, curve) in zip(COLOURS, curves.items()):
            found = [t_interval(values) for values in curve]
            axis.plot(places, [f.mean for f in found], color=colour, label=name)
            axis.fill_between(places, [f.low for f in found], [f.high for f in found], color=colour, alpha=0.15)
        axis.set(xlabel=what, ylabel=title, ylim=(0, None))
        axis.grid(alpha=0.3)
    axis.legend()
    fig.savefig(file, metadata={"Date": None})
