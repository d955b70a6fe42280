"""What sims chooses on a CPU (precision, threads, layout, products, kept memory) against every alternative, in one run.

    python benchmarks/cpu.py --out benchmarks/results/cpu.json

Networks of the table of usual ones, in training (a whole step of the trainer) and in sampling. Alternatives take turns,
so that other work on the machine slows all of them alike; figures are medians, ratios are of images per second, to the
fastest alternative. What the environment or torch settle once for a process (kept memory) is tried in processes of
their own. The libraries that do the same are beside it in ``throughput.py``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import save
from sims import threads
from sims.allocator import keep_memory
from sims.data.codec import UINT8
from sims.data.dataset import Dataset
from sims.networks import linear, song_unet
from sims.networks.options import NetworkOptions
from sims.sampling import SamplerOptions, sample_seeds
from sims.training.arithmetic import autocast_dtype, has_bf16
from sims.training.base import new_model
from sims.training.trainer import Trainer, TrainOptions

CPU = torch.device("cpu")
CASES: dict[str, tuple[tuple[int, ...], int, NetworkOptions]] = {  # shape, batch, network
    "mlp, 8x8": ((1, 8, 8), 256, NetworkOptions()),
    "ddpmpp, 28x28": ((1, 28, 28), 128, NetworkOptions()),
    "ddpmpp, 64x64": ((3, 64, 64), 64, NetworkOptions()),
    "edm2, 32x32": ((3, 32, 32), 64, NetworkOptions(type="edm2", width=32, blocks=1, channel_mult=(1, 2, 2))),
}
Work = Callable[[], Any]


def model_of(name: str) -> tuple[Any, Dataset, int]:
    shape, batch, network = CASES[name]
    pictures = np.random.default_rng(0).integers(0, 256, (4 * batch, *shape), dtype=np.uint8)
    data = Dataset(pictures, None, UINT8)
    return new_model(data, network, SamplerOptions(), 0), data, batch


@dataclass(frozen=True, order=True)
class Way:
    """How to compute: precision, threads, where channels lie, and what multiplies matrices of fp32."""

    precision: str
    threads: int
    layout: str
    products: str

    def __str__(self) -> str:
        return f"{self.precision}, {self.threads} threads, channels {self.layout}, {self.products}"


def works(name: str, task: str, way: Way) -> Work:
    """One batch of a task: a training step, or two evaluations of a sampler."""
    model, data, batch = model_of(name)
    if way.layout == "last":
        model.denoiser.to(memory_format=torch.channels_last)
    if task == "training":
        options = TrainOptions(batch=batch, precision=way.precision)  # type: ignore[arg-type]
        trainer = Trainer(model, data, options, Path(), images=10**9, seed=0)
        trainer.build()
        return trainer.update
    sampler = SamplerOptions(solver="euler", steps=2, precision=way.precision)  # type: ignore[arg-type]
    model.denoiser.eval().requires_grad_(False)

    def sample() -> None:
        ours = song_unet.arranged, linear.onednn_speed
        if way.layout == "first":
            song_unet.arranged = lambda h: h
        if way.products == "MKL":
            linear.onednn_speed = lambda: 0.0
        try:
            sample_seeds(model.denoiser, range(batch), sampler, batch_size=batch)
        finally:
            song_unet.arranged, linear.onednn_speed = ours

    return sample


def chosen(task: str) -> Way:
    """What sims takes; of samples the user chooses the precision."""
    half = task == "training" and autocast_dtype("auto", CPU) is not None
    return Way("bf16" if half else "fp32", threads.fastest(), "as sims has them", "as sims has them")


def alternatives(name: str, task: str, rounds: int) -> list[dict[str, Any]]:
    """Images per second of every alternative; in each one thing differs from what is chosen."""
    own, most = chosen(task), torch.get_num_threads()
    ways = {own} | {replace(own, threads=count) for count in {most, max(1, most // 2)}}
    if task == "training" and has_bf16(CPU):
        ways |= {replace(own, precision=other) for other in ("fp32", "bf16")}
    if name.startswith("mlp"):
        ways |= {replace(own, products="MKL")} if task == "sampling" else set()
    else:
        ways |= {replace(own, layout=other) for other in ("first", "last")}
    rivals = {way: works(name, task, way) for way in sorted(ways)}
    taken = {way: list[float]() for way in rivals}
    for turn in range(rounds + 1):
        for way, work in rivals.items():
            torch.set_num_threads(way.threads)
            begin = time.perf_counter()
            work()
            taken[way] += [time.perf_counter() - begin] if turn else []
    torch.set_num_threads(most)
    speeds = {way: CASES[name][1] / statistics.median(seconds) for way, seconds in taken.items()}
    best, rows = max(speeds.values()), []
    for way, speed in speeds.items():
        row = {"network": name, "task": task, **asdict(way), "chosen": way == own}
        rows.append(row | {"images_per_second": speed, "of_the_best": speed / best})
        print(f"{name}, {task}, {way}: {speed:.1f} images/s, {speed / best:.2f} of the best"
              f"{', chosen' if way == own else ''}", flush=True)  # fmt: skip
    return rows


def alone(name: str, memory: str, rounds: int) -> dict[str, float]:
    """In a process of its own: images per second of training and sampling, with memory kept or left to the library."""
    if memory == "left":  # the environment settles it: what glibc does by itself
        os.environ["MALLOC_TRIM_THRESHOLD_"] = "131072"
    kept, found = keep_memory(), {}
    for task in ("training", "sampling"):
        work, seconds = works(name, task, chosen(task)), list[float]()
        for _ in range(rounds + 1):
            begin = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - begin)
        found[task] = CASES[name][1] / statistics.median(seconds[1:])
    return {**found, "kept": float(kept)}


def memory(name: str, rounds: int) -> list[dict[str, Any]]:
    """Kept memory against glibc's own ways, in processes that take turns."""
    found: dict[str, list[dict[str, float]]] = {"kept": [], "left": []}
    for _ in range(3):
        for way, values in found.items():
            command = [sys.executable, __file__, "--alone", name, way, "--rounds", str(rounds)]
            values.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    rows = []
    for task in ("training", "sampling"):
        speeds = {way: statistics.median(value[task] for value in values) for way, values in found.items()}
        ratio = speeds["kept"] / speeds["left"]
        rows.append({"network": name, "task": task, "images_per_second": speeds, "kept_over_left": ratio})
        print(f"{name}, {task}: memory kept {ratio:.2f} x as fast as left to the library", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cases", nargs="+", choices=[*CASES], default=[*CASES])
    parser.add_argument("--alone", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cpu.json"))
    settings = parser.parse_args()
    if settings.alone:
        print(json.dumps(alone(*settings.alone, settings.rounds)))
        return
    result: dict[str, Any] = {"benchmark": "cpu", "rounds": settings.rounds, "alternatives": [], "memory": []}
    for name in settings.cases:
        for task in ("training", "sampling"):
            result["alternatives"] += alternatives(name, task, settings.rounds)
        result["memory"] += memory(name, settings.rounds)
        save(settings.out, result)
    worst = min(row["of_the_best"] for row in result["alternatives"] if row["chosen"])
    print(f"what is chosen is at least {worst:.2f} times as fast as the best alternative")


if __name__ == "__main__":
    main()
