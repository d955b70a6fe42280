"""Generators of one and two evaluations: a consistency model, distilled here, improves itself.

    python benchmarks/few_steps.py [--folder runs/few-steps] [--base MODEL] [--out benchmarks/results/few-steps.json]

The digits' base (trained here unless given) is distilled into a consistency model (Song et al. 2023, arXiv 2303.01469,
Algorithm 2, with pseudo-Huber distance). `sims improve` then runs on that twice: sampled in one evaluation, and in two.
Own samples are drawn in as many; base, SIMS and Neon are judged on fresh samples. An interrupted benchmark continues.
"""

from __future__ import annotations

import argparse
import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sims
from common import flat, improved, save
from sims.config import options_of
from sims.denoiser import expand
from sims.experiments.options import ImproveOptions
from sims.model import Model, load
from sims.preconditioning import ConsistencyPrecond, EDMPrecond
from sims.runs.progress import progress
from sims.sampling import SamplerOptions, edm_sigmas
from sims.screen import Screen

LEVELS, BATCH, RATE, WARMUP = 18, 256, 4e-4, 200
TARGET, AVERAGE = 0.95, 0.999  # decays of the target network and of the average that is kept
HUBER = 0.03
SECOND = 0.8  # the noise level of the second evaluation
BUDGETS = (8_000, 16_000, 32_000, 64_000)  # images of the auxiliary: much less than of a base of many steps


def distil(teacher: Model, images: int, seed: int = 0) -> Model:
    """A consistency model of what the teacher was trained on, from its own network."""
    base = teacher.denoiser
    assert isinstance(base, EDMPrecond)
    data = sims.load_data("digits").without_labels()
    levels = edm_sigmas(LEVELS, base.sigma_min, base.sigma_max)[:-1].flip(0).float()
    generator = torch.Generator().manual_seed(seed)

    def student() -> ConsistencyPrecond:
        how = {"sigma_data": base.sigma_data, "sigma_min": base.sigma_min, "sigma_max": base.sigma_max, "scale": 0.25}
        return ConsistencyPrecond(copy.deepcopy(base.network), base.data_shape, 0, **how)

    network, target, average = student().train().requires_grad_(True), student(), student()
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
    steps = images // BATCH
    with progress(Screen(), "distil", images) as advance:
        for step in range(steps):
            x, _ = data.batch(torch.randint(len(data), (BATCH,), generator=generator).numpy())
            place = torch.randint(LEVELS - 1, (BATCH,), generator=generator)
            low, high = levels[place], levels[place + 1]
            noisy = x + expand(high, x) * torch.randn(x.shape, generator=generator)
            with torch.no_grad():
                goal = target(heun_step(base, noisy, high, low), low)
            error = (network(noisy, high) - goal).square().flatten(1).sum(1)
            loss = ((error + HUBER**2).sqrt() - HUBER).mean()
            for group in optimizer.param_groups:
                group["lr"] = RATE * min(1, (step + 1) / WARMUP) * (1 + math.cos(math.pi * step / steps)) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            follow(target, network, 1 - TARGET)
            follow(average, network, 1 - min(AVERAGE, (step + 1) / (step + 10)))
            advance(BATCH)
    made = teacher.with_denoiser(average.eval().requires_grad_(False))
    sampler = SamplerOptions(solver="consistency", steps=1)
    return replace(made, sampler=sampler, provenance={"distilled": "consistency", "images": images, "seed": seed})


def heun_step(denoiser: Any, x: Tensor, high: Tensor, low: Tensor) -> Tensor:
    """Along the probability flow of a denoiser, from one level down to the next."""
    slope = (x - denoiser(x, high)) / expand(high, x)
    euler = x + expand(low - high, x) * slope
    return x + expand(low - high, x) * (slope + (euler - denoiser(euler, low)) / expand(low, x)) / 2


@torch.no_grad()
def follow(ours: nn.Module, theirs: nn.Module, share: float) -> None:
    torch._foreach_lerp_(list(ours.parameters()), list(theirs.parameters()), share)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/few-steps"))
    parser.add_argument("--base", type=Path)
    parser.add_argument("--images", type=int, default=1_200_000, help="training length of the consistency model")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/few-steps.json"))
    given = parser.parse_args()
    made = given.folder / "consistency"
    if not (made / "model.json").is_file():
        teacher = load(given.base) if given.base else sims.train(given.folder / "base", "digits")
        distil(teacher, given.images).save(made)
    runs = {}
    for evaluations in (1, 2):
        sampler = {"solver": "consistency", "steps": evaluations, "sigma_min": SECOND if evaluations > 1 else None}
        table = {
            "run": str(given.folder / f"evaluations-{evaluations}"), "model": str(made), "sampler": sampler,
            "auxiliary": {"budgets": BUDGETS}, "data": {"path": "digits"},
            "methods": ["base", "sims", "neon", "self-trained", "distilled"],
        }  # fmt: skip
        result = improved(options_of(ImproveOptions, table, ""))
        runs[str(evaluations)] = {"rows": [flat(row) for row in result.rows], "headline": result.headline}
    save(given.out, {"images": given.images, "second level": SECOND, "runs": runs})


if __name__ == "__main__":
    main()
