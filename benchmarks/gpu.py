"""All checks that need a GPU, in one call: parity with the CPU, training and sampling throughput, the main job.

    python benchmarks/gpu.py --out benchmarks/results/gpu.json

Without a GPU it says so and exits with status 2.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from common import interleaved, save
from sims.data.sources import load_pair
from sims.experiments.improve import improve
from sims.experiments.options import BaseOptions, ImproveOptions
from sims.guidance import Extrapolate
from sims.model import Model
from sims.sampling import SamplerOptions
from sims.training.loop import Trainer, TrainOptions
from sims.verbs.train import NetworkOptions, new_model


def parity(model: Model) -> dict[str, float]:
    """The same seeds on CPU and GPU: largest difference of a sample."""
    on_cpu = model.sample(range(64))
    on_gpu = model.with_denoiser(copy.deepcopy(model.denoiser).to("cuda")).sample(range(64))  # type: ignore[attr-defined]
    return {"largest_difference": float((on_cpu - on_gpu).abs().max())}


def training(model: Model, data: Any) -> list[dict[str, Any]]:
    """Milliseconds a step at several batch sizes and precisions."""
    rows = []
    for precision in ("fp32", "bf16"):
        for batch in (256, 4096):
            stamps: list[float] = []
            with tempfile.TemporaryDirectory() as folder:
                options = TrainOptions(batch=batch, precision=precision)  # type: ignore[arg-type]
                trainer = Trainer(
                    model, data, options, Path(folder), images=300 * batch, seed=0, accelerator=Accelerator()
                )
                trainer.run(lambda count, stamps=stamps: stamps.append(time.perf_counter()))
            step = (stamps[-2] - stamps[50]) / (len(stamps) - 52)
            rows.append({"precision": precision, "batch": batch, "ms": 1e3 * step, "images_per_second": batch / step})
            print(rows[-1])
    return rows


def sampling(model: Model) -> dict[str, float]:
    """Seconds for 20,000 samples of the base and of a guided pair of networks of the same size."""
    base = copy.deepcopy(model.denoiser).to("cuda")  # type: ignore[attr-defined]
    aux = copy.deepcopy(base)
    pair = model.with_denoiser(Extrapolate(base, aux, 1.0))
    single = model.with_denoiser(base)
    seeds = range(20_000)
    return interleaved({
        "base": lambda: single.sample(seeds, batch_size=5_000),
        "sims": lambda: pair.sample(seeds, batch_size=5_000),
    }, 3)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu.json"))
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU here: these checks need one")
        return 2
    data = load_pair("digits")[0].without_labels()
    model = new_model(data, NetworkOptions(), SamplerOptions(), seed=0)
    result: dict[str, Any] = {"benchmark": "gpu", "parity": parity(model), "training": training(model, data)}
    result["sampling_seconds"] = sampling(model)
    with tempfile.TemporaryDirectory() as folder:
        summary = improve(ImproveOptions(run=Path(folder) / "run", base=BaseOptions(images=1_280_000)))
    result["improve"] = {"seconds": summary["seconds"], "headline": summary["headline"], "rows": summary["rows"]}
    save(options.out, result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
