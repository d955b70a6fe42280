"""Training throughput against the same network in a bare PyTorch loop, in one process.

    python benchmarks/training.py --out benchmarks/results/training.json

The bare loop does the least that trains the same model: batch, noise, EDM loss, backward, clipping, Adam, EMA.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import statistics
import tempfile
import time
from pathlib import Path

import torch

from common import save
from sims.data.sources import load_pair
from sims.model import Model
from sims.networks.options import NetworkOptions
from sims.sampling import SamplerOptions
from sims.training.arithmetic import has_bf16
from sims.training.base import new_model
from sims.training.trainer import Trainer, TrainOptions


def bare(model: Model, x: torch.Tensor, options: TrainOptions, steps: int, bf16: bool) -> float:
    """Median seconds of a step of the bare loop."""
    network = copy.deepcopy(model.denoiser).train().requires_grad_(True)
    average = [p.detach().clone() for p in network.parameters()]
    optimizer = torch.optim.Adam(network.parameters(), lr=options.lr, fused=True)
    sigma_data = model.denoiser.sigma_data
    stamps = [time.perf_counter()]
    for _ in range(steps):
        clean = x[torch.randint(len(x), (options.batch,))]
        sigma = (torch.randn(options.batch) * options.p_std + options.p_mean).exp()
        level = sigma.reshape(-1, 1, 1, 1)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            denoised = network(clean + level * torch.randn_like(clean), sigma)
        weight = (level**2 + sigma_data**2) / (level * sigma_data) ** 2
        loss = (weight * (denoised.float() - clean) ** 2).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), options.clip)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(average, [p.detach() for p in network.parameters()], 0.01)
        stamps.append(time.perf_counter())
    return median_step(stamps)


def median_step(stamps: list[float]) -> float:
    """Median difference of consecutive times: other work on the machine disturbs it least."""
    return statistics.median(b - a for a, b in itertools.pairwise(stamps[1:]))


def ours(model: Model, data, options: TrainOptions, steps: int) -> float:
    """Median seconds of a step of the project's loop."""
    stamps: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(model, data, options, Path(folder), images=steps * options.batch, seed=0)
        trainer.run(lambda count: stamps.append(time.perf_counter()))
    return median_step(stamps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/training.json"))
    settings = parser.parse_args()
    data = load_pair("digits")[0].without_labels()
    model = new_model(data, NetworkOptions(), SamplerOptions(), seed=0)
    x, rows = data.all()[0], []
    for precision in ("fp32", "bf16") if has_bf16(torch.device("cpu")) else ("fp32",):
        options = TrainOptions(precision=precision)
        pairs = []
        for _ in range(settings.rounds):
            reference = bare(model, x, options, settings.steps, precision == "bf16")
            pairs.append((ours(model, data, options, settings.steps), reference))
        overhead = statistics.median(a / b for a, b in pairs) - 1
        mine, theirs = (statistics.median(pair[i] for pair in pairs) for i in (0, 1))
        rows.append({"precision": precision, "sims_ms": 1e3 * mine, "bare_ms": 1e3 * theirs, "overhead": overhead})
        print(
            f"{precision}: sims {1e3 * mine:.2f} ms a step, bare loop {1e3 * theirs:.2f} ms, overhead {overhead:+.1%}"
        )
    save(settings.out, {"benchmark": "training", "steps": settings.steps, "rounds": settings.rounds, "rows": rows})


if __name__ == "__main__":
    main()
