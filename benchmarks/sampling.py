"""Sampling throughput of base, SIMS, cached, fast and distilled, as ratios to the base in one run.

    python benchmarks/sampling.py --run runs/digits --out benchmarks/results/sampling.json

The physical limit of a method is its number of network evaluations over the base's. Evaluating both networks of a pair
in one call (torch.func.stack_module_state and vmap) is slower than two calls on a CPU, and left out: the digits' MLP
takes 1.63 against 0.65 ms for 1 sample, 26.0 against 21.4 ms for 500; a small DDPM++ 14.1 against 10.9 and, for 64
samples, 275 against 195 ms.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from common import interleaved, save
from sims.denoiser import Denoiser
from sims.guidance import Extrapolate
from sims.model import Model, load
from sims.sampling import SamplerOptions, nfe


def rivals(run: Path) -> dict[str, tuple[Model, SamplerOptions]]:
    """The models of a finished run, and the sampler of each."""
    improved, distilled = load(run / "improved"), load(run / "distilled")
    guided = improved.denoiser
    if not isinstance(guided, Extrapolate) or guided.cache is None:
        raise SystemExit(f"{run} holds no cached SIMS model: run `sims improve` first")

    def model(denoiser: Denoiser) -> Model:
        return improved.with_denoiser(denoiser)

    heun = improved.sampler
    few = replace(guided.cache, refreshes=4)
    fast = guided.with_cache(few)
    return {
        "base": (model(guided.base), heun),
        "sims": (model(guided.with_cache(None)), heun),
        "sims (cached)": (improved, heun),
        "sims (fast, 2M, 4 corrections)": (model(fast), replace(heun, solver="dpmpp2m", steps=18)),
        "distilled": (distilled, heun),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/digits"))
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/sampling.json"))
    options = parser.parse_args()
    found = rivals(options.run)

    def work(name: str) -> None:
        model, sampler = found[name]
        model.sample(range(options.count), sampler=sampler, batch_size=500)

    seconds = interleaved({name: lambda name=name: work(name) for name in found}, options.rounds)
    rows = []
    for name, (model, sampler) in found.items():
        cost = nfe(model, sampler)
        base_cost = nfe(*found["base"])
        ratio = seconds[name] / seconds["base"]
        row = {"name": name, "nfe": cost, "nfe_ratio": cost / base_cost, "seconds": seconds[name], "time_ratio": ratio}
        rows.append({**row, "samples_per_second": options.count / seconds[name]})
        print(f"{name:<32} NFE {cost:3d} ({cost / base_cost:.2f}x)   time {ratio:.2f}x   "
              f"{options.count / seconds[name]:,.0f} samples/s")  # fmt: skip
    save(options.out, {"benchmark": "sampling", "count": options.count, "rounds": options.rounds, "rows": rows})


if __name__ == "__main__":
    main()
