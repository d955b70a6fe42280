"""All checks that need a GPU, in one call of under 10 minutes: parity with the CPU, speed, the main job.

    python benchmarks/gpu.py --out benchmarks/results/gpu.json

Speed is that of EDM's DDPM++ for CIFAR-10 (55.7 million parameters) on random images: training and sampling in several
precisions, with channels innermost in memory, compiled, and with CUDA graphs, as share of the matrix product's peak;
and guided, cached and distilled sampling. The file is written after every section; one that fails says why, and what
the time does not suffice for is left out. Without a GPU it says so and exits with status 2; --device cpu --tiny runs
the same code at toy size.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.flop_counter import FlopCounterMode

from common import improved, save
from sims.config import override
from sims.data.codec import UINT8
from sims.data.dataset import Dataset
from sims.data.sources import load_pair
from sims.denoiser import Precision
from sims.experiments.options import ImproveOptions
from sims.guidance import CacheRule, Extrapolate
from sims.model import Model
from sims.networks.options import NetworkOptions
from sims.results.summaries import to_json
from sims.sampling import SamplerOptions, nfe, sample_seeds
from sims.training.base import new_model
from sims.training.trainer import Trainer, TrainOptions

TINY_JOB = {
    "methods": ["base", "sims"],
    "network": {"width": 32, "blocks": 1, "embedding": 16},
    "sampler": {"steps": 4},
    "batch_size": 50,
    "base": {"images": 5120},
    "auxiliary": {"samples": 100, "budgets": [1280]},
    "search": {"rungs": [50]},
    "guidance": {"pilot": 16},
    "distilled": {"samples": 100, "images": 1280},
    "evaluation": {"samples": 50, "draws": 2, "manifold_samples": 50, "extractor": "pca"},
}


@dataclass(frozen=True)
class Setting:
    """Where the checks run and how large they are."""

    device: torch.device
    tiny: bool
    deadline: float

    @property
    def steps(self) -> int:
        return 2 if self.tiny else 20

    @property
    def precisions(self) -> tuple[Precision, ...]:
        return ("fp32", "bf16", "fp16") if self.device.type == "cuda" else ("fp32", "bf16")

    def accelerator(self) -> Accelerator:
        return Accelerator(cpu=self.device.type == "cpu")

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def median(self, work: Callable[[], Any], times: int, warm: int = 2) -> float:
        """Median seconds of a call."""
        taken = []
        for _ in range(warm + times):
            begin = time.perf_counter()
            work()
            self.wait()
            taken.append(time.perf_counter() - begin)
        return statistics.median(taken[warm:])


def cifar(setting: Setting) -> tuple[Model, Dataset]:
    """EDM's DDPM++ for CIFAR-10, freshly drawn, and random images of its size."""
    side = 8 if setting.tiny else 32
    raw = np.random.default_rng(0).integers(0, 256, (64 if setting.tiny else 4096, 3, side, side), dtype=np.uint8)
    data = Dataset(raw, None, UINT8)
    size: dict[str, Any] = {"width": 128, "blocks": 4, "channel_mult": (2, 2, 2), "attention": (16,), "dropout": 0.13}
    if setting.tiny:
        size |= {"width": 8, "blocks": 1, "channel_mult": (1, 1), "attention": (4,)}
    return new_model(
        data, NetworkOptions(type="ddpmpp", **size), SamplerOptions(steps=3 if setting.tiny else 10), 0
    ), data


def peaks(setting: Setting) -> dict[str, float]:
    """TFLOP/s of a matrix product in each precision."""
    size, found = 256 if setting.tiny else 8192, {}
    dtypes: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    for precision in setting.precisions:
        a = torch.randn(size, size, device=setting.device).to(dtypes[precision])
        found[precision] = 2 * size**3 / setting.median(lambda a=a: a @ a, 5) / 1e12
    return found


def parity(setting: Setting) -> list[dict[str, Any]]:
    """The same seeds on the CPU and on the device, with every architecture: largest difference of a sample in fp32."""
    data, rows = load_pair("digits")[0], []
    kinds: tuple[Literal["mlp", "ddpmpp", "ncsnpp", "adm", "edm2"], ...] = ("mlp", "ddpmpp", "ncsnpp", "adm", "edm2")
    for kind in ("mlp", "ddpmpp") if setting.tiny else kinds:
        options = NetworkOptions(type=kind, width=64, blocks=1, channel_mult=(1, 1), attention=(4,))
        model = new_model(data, options, SamplerOptions(steps=4 if setting.tiny else 18), seed=0)
        trained = short_training(model, data, setting)  # a fresh network gives next to nothing
        here = model.with_denoiser(trained.cpu()).sample(range(8))
        there = model.with_denoiser(copy.deepcopy(trained).to(setting.device)).sample(range(8))
        rows.append({"network": kind, "largest_difference": float((here - there).abs().max())})
    return rows


def short_training(model: Model, data: Dataset, setting: Setting) -> torch.nn.Module:
    """A copy of the network after a few steps on the device."""
    options = TrainOptions(batch=64, warmup=0, precision="fp32")
    trainer = Trainer(model, data, options, Path(), images=10**9, seed=0, accelerator=setting.accelerator())
    trainer.build()
    for _ in range(setting.steps):
        trainer.update()
        trainer.step += 1
    trainer.feed.close()
    return trainer.network.eval().requires_grad_(False)


def training(setting: Setting, peak: dict[str, float], compiled: bool = False) -> list[dict[str, Any]]:
    """Images per second of the loop, with its data, loss, clipping, Adam and average."""
    model, data = cifar(setting)
    batch, rows = 8 if setting.tiny else 256, []
    for innermost in (False,) if compiled else (False, True):  # a compiler chooses the layout itself
        for precision in ("bf16",) if compiled else setting.precisions:
            start = model.with_denoiser(laid_out(model, innermost))
            options = TrainOptions(batch=batch, precision=precision, compile=compiled)
            trainer = Trainer(start, data, options, Path(), images=10**9, seed=0, accelerator=setting.accelerator())
            trainer.build()
            flops = 0.0

            def step(trainer: Trainer = trainer) -> None:
                trainer.update()
                trainer.step += 1

            if not compiled:
                with FlopCounterMode(display=False) as counter:
                    step()
                flops = counter.get_total_flops() / 1e12
            seconds = setting.median(step, setting.steps)
            trainer.feed.close()
            row = {"precision": precision, "batch": batch, "channels_last": innermost, "compiled": compiled}
            row |= {"images_per_second": batch / seconds}
            rows.append(row | ({"share_of_peak": flops / seconds / peak[precision]} if flops else {}))
            print(rows[-1], flush=True)
    return rows


def laid_out(model: Model, innermost: bool) -> Any:
    layout = torch.channels_last if innermost else torch.contiguous_format
    return copy.deepcopy(model.denoiser).to(memory_format=layout)  # type: ignore[attr-defined]


def sampling(setting: Setting, peak: dict[str, float], compiled: bool = False) -> list[dict[str, Any]]:
    """Images per second of one network, in large batches and in small ones."""
    model, _ = cifar(setting)
    rows = []
    for innermost in (False,) if compiled else (False, True):  # a compiler chooses the layout itself
        network = laid_out(model, innermost).to(setting.device).eval().requires_grad_(False)
        for precision in ("bf16",) if compiled else setting.precisions:
            for batch in (4,) if setting.tiny else (8, 256):
                options = replace(model.sampler, precision=precision, compile=compiled)
                work = lambda n=network, o=options, b=batch: sample_seeds(n, range(b), o, batch_size=b)  # noqa: E731
                seconds = setting.median(work, 3, warm=1 + compiled)
                row = {"precision": precision, "batch": batch, "channels_last": innermost, "compiled": compiled}
                rows.append(row | {"nfe": nfe(network, options), "images_per_second": batch / seconds})
                print(rows[-1], flush=True)
    return rows


def guidance(setting: Setting) -> list[dict[str, Any]]:
    """What guided and cached sampling cost, in units of one network, which is the distilled one's cost."""
    model, data = cifar(setting)
    base = short_training(model, data, setting).to(setting.device)
    aux = short_training(model.with_denoiser(base), data, setting).to(setting.device)
    pair = Extrapolate(base, aux, 1.0)  # type: ignore[arg-type]
    batch = 4 if setting.tiny else 128
    rule = CacheRule.from_pilot(pair, range(batch), model.sampler, 2 if setting.tiny else 4, sigma_data=0.5)
    rivals = {"one network, distilled": base, "guided": pair, "cached": Extrapolate(base, aux, 1.0, cache=rule)}  # type: ignore[arg-type,dict-item]
    rows: list[dict[str, Any]] = []
    for precision in ("fp32", "bf16"):
        options = replace(model.sampler, precision=precision)  # type: ignore[arg-type]
        for name, denoiser in rivals.items():
            work = lambda d=denoiser, o=options: sample_seeds(d, range(batch), o, batch_size=batch)  # noqa: E731
            cost, seconds = nfe(denoiser, options), setting.median(work, 3, warm=1)  # type: ignore[arg-type]
            rows.append({"name": name, "precision": precision, "nfe": cost, "images_per_second": batch / seconds})
            print(rows[-1], flush=True)
    return rows


def job(setting: Setting) -> dict[str, Any]:
    """The main job: digits at their defaults, so that CPU and GPU can be compared."""
    with tempfile.TemporaryDirectory() as folder:
        options = replace(ImproveOptions(), run=Path(folder) / "run")
        result = improved(override(options, TINY_JOB) if setting.tiny else options)
    return {"seconds": result.reproduction.seconds, "headline": result.headline, "rows": to_json(result.rows)}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu.json"))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="toy size, to see that everything runs")
    parser.add_argument("--seconds", type=float, default=570.0, help="no section begins after this time")
    chosen = parser.parse_args(arguments)
    if chosen.device == "cuda" and not torch.cuda.is_available():
        print("no GPU here: these checks need one (--device cpu --tiny runs them at toy size)")
        return 2
    setting = Setting(torch.device(chosen.device), chosen.tiny, time.monotonic() + chosen.seconds)
    peak = peaks(setting)
    sections: dict[str, Callable[[], Any]] = {
        "parity": lambda: parity(setting),
        "training": lambda: training(setting, peak),
        "sampling": lambda: sampling(setting, peak),
        "guidance": lambda: guidance(setting),
        "improve": lambda: job(setting),
        "sampling_compiled": lambda: sampling(setting, peak, compiled=True),
        "training_compiled": lambda: training(setting, peak, compiled=True),
    }
    result: dict[str, Any] = {"benchmark": "gpu", "device": chosen.device, "tiny": chosen.tiny, "peak_tflops": peak}
    for name, section in sections.items():
        if time.monotonic() > setting.deadline:
            result[name] = {"left_out": f"{chosen.seconds:g} seconds were over"}
            continue
        begin = time.monotonic()
        try:
            result[name] = section()
        except Exception as error:  # the others may still tell something
            result[name] = {"error": repr(error)}
        result.setdefault("section_seconds", {})[name] = time.monotonic() - begin
        save(chosen.out, result)
    return int(any(isinstance(part, dict) and "error" in part for part in result.values()))


if __name__ == "__main__":
    raise SystemExit(main())
