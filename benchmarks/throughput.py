"""Training and sampling of one network in sims' loops and in those of diffusers and denoising-diffusion-pytorch.

    python -m venv PEERS
    PEERS/bin/pip install -c constraints.txt -e ".[diffusers]"
    PEERS/bin/pip install --no-deps denoising-diffusion-pytorch einops ema-pytorch pytorch-fid
    PEERS/bin/python benchmarks/throughput.py --threads 1

(--no-deps, since denoising-diffusion-pytorch asks for torchvision, of which it needs nothing here.) Every library's
network, of the same weights, is trained and sampled by its own loop and by sims', in turn, with the same batch and
precision; sampling makes the same number of network evaluations. throughput_peers.py says what each loop does.
Ratios are medians over the rounds. Seconds are those of the clock, or with --clock cpu of the processor, which tell
more on a machine that is busy with other work. The peaks are those of a matrix product and of a convolution.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from common import save
from sims.data.codec import UINT8
from sims.data.dataset import Dataset
from sims.sampling import SamplerOptions, nfe, sample_seeds
from sims.training.arithmetic import has_bf16
from sims.training.trainer import Trainer, TrainOptions
from throughput_peers import PEERS, SIDE, Peer, Work

DTYPES = {"fp32": None, "bf16": torch.bfloat16}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def seconds(work: Work, clock: Callable[[], float]) -> float:
    begin = clock()
    work()
    return clock() - begin


def peaks(clock: Callable[[], float], size: int, rounds: int) -> list[dict[str, Any]]:
    """The most that this machine computes, in GFLOP/s: the best of some tries, which other work cannot make better."""
    rows = []
    for precision, dtype in DTYPES.items():
        a, b = (torch.randn(size, size).to(dtype or torch.float32) for _ in range(2))
        x, w = torch.randn(16, 128, SIDE, SIDE).to(a.dtype), torch.randn(128, 128, 3, 3).to(a.dtype)
        with torch.inference_mode():
            best = [
                min(seconds(work, clock) for _ in range(rounds + 1))
                for work in (lambda a=a, b=b: torch.mm(a, b), lambda x=x, w=w: F.conv2d(x, w, padding=1))
            ]
        flops = 2 * size**3, 2 * x.numel() * w[0].numel()
        rates = {name: count / t / 1e9 for name, count, t in zip(("matmul", "convolution"), flops, best)}
        rows.append({"precision": precision, "size": size, **{f"{name}_gflops": r for name, r in rates.items()}})
        print(f"peak {precision}: " + ", ".join(f"{name} {rate:.0f} GFLOP/s" for name, rate in rates.items()))
    return rows


def our_step(peer: Peer, data: Dataset, batch: int, precision: str, compiled: bool) -> Work:
    """One step of sims' loop."""
    options = TrainOptions(batch=batch, precision=precision, compile=compiled)  # type: ignore[arg-type]
    trainer = Trainer(peer.model, data, options, Path(), images=10**9, seed=0)
    trainer.build()

    def step() -> None:
        trainer.update()
        trainer.step += 1

    return step


def our_samples(peer: Peer, batch: int, evaluations: int, precision: str, compiled: bool) -> Work:
    """One batch of sims' sampler: DPM-Solver++(2M), an evaluation a step, as DDIM."""
    denoiser = peer.model.denoiser.eval().requires_grad_(False)  # type: ignore[attr-defined]
    options = SamplerOptions(solver="dpmpp2m", steps=evaluations)
    options = replace(options, precision=precision, compile=compiled)  # type: ignore[arg-type]
    if nfe(denoiser, options) != evaluations:
        raise SystemExit(f"{evaluations} steps cost {nfe(denoiser, options)} evaluations")
    return lambda: sample_seeds(denoiser, range(batch), options, batch_size=batch)


def jobs(peer: Peer, settings: argparse.Namespace) -> dict[tuple[str, str], dict[str, Work]]:
    """By task and precision: the peer's work and ours."""
    raw = np.random.default_rng(0).integers(0, 256, (8 * settings.batch, 3, SIDE, SIDE), dtype=np.uint8)
    data, images = Dataset(raw, None, UINT8), torch.from_numpy(raw).float() / 255
    batch, count, found = settings.batch, settings.evaluations, {}
    for precision, dtype in DTYPES.items():
        train = {"peer": peer.train(images, batch, dtype), "sims": our_step(peer, data, batch, precision, False)}
        sample = {
            "peer": peer.sample(batch, count, dtype),
            "sims": our_samples(peer, batch, count, precision, False),
        }
        if settings.compile:
            train["sims, compiled"] = our_step(peer, data, batch, precision, True)
        found[("training", precision)], found[("sampling", precision)] = train, sample
    return found


def profiled(work: Work, rows: int = 8) -> list[dict[str, Any]]:
    """The operators in which a rival spends its time."""
    with profile(activities=[ProfilerActivity.CPU]) as trace:
        work()
    events = sorted(trace.key_averages(), key=lambda event: -event.self_cpu_time_total)
    whole = sum(event.self_cpu_time_total for event in events)
    return [
        {"operator": event.key, "share": event.self_cpu_time_total / whole, "calls": event.count}
        for event in events[:rows]
    ]


def measured(peer: Peer, settings: argparse.Namespace, peak: dict[str, float]) -> Iterator[list[dict[str, Any]]]:
    """Rows of one library, task by task; all precisions of a task take turns, so that they can be compared too."""
    found, clock = jobs(peer, settings), CLOCKS[settings.clock]
    for task in ("training", "sampling"):
        rows = []
        works = {(p, name): work for (t, p), rivals in found.items() if t == task for name, work in rivals.items()}
        with FlopCounterMode(display=False) as counter:
            works[("fp32", "peer")]()
        flops = counter.get_total_flops() / 1e9  # the same for all
        for work in works.values():
            work()  # warms up
        times: dict[tuple[str, str], list[float]] = {key: [] for key in works}
        for _ in range(settings.rounds):
            for key, work in works.items():
                times[key].append(seconds(work, clock))
        for (precision, name), taken in times.items():
            speed = settings.batch / statistics.median(taken)
            row = {"library": peer.name, "task": task, "precision": precision, "loop": name, "images_per_second": speed}
            against = {"ratio": times[(precision, "peer")], "ratio_to_peer_fp32": times[("fp32", "peer")]}
            for label, theirs in against.items():
                row[label] = statistics.median(b / a for a, b in zip(taken, theirs))
            rate = flops / statistics.median(taken)
            row |= {"gflops": rate, "share_of_matmul_peak": rate / peak[precision]}
            rows.append(row)
            print(f"{peer.name}, {task}, {precision}, {name}: {speed:.2f} images/s, {row['ratio']:.2f} x the peer, "
                  f"{row['ratio_to_peer_fp32']:.2f} x its fp32, {row['share_of_matmul_peak']:.0%} of the peak",
                  flush=True)  # fmt: skip
            if name == "sims":
                row["profile"] = profiled(works[(precision, name)])
        yield rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", nargs="+", choices=[*PEERS], default=[*PEERS])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--evaluations", type=int, default=10, help="network evaluations of a sample")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of torch; all cores if not given")
    parser.add_argument("--clock", choices=[*CLOCKS], default="wall")
    parser.add_argument("--compile", action="store_true", help="also the loop of sims with torch.compile")
    parser.add_argument("--peak-size", type=int, default=2048)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/throughput.json"))
    settings = parser.parse_args()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    if not has_bf16(torch.device("cpu")):
        DTYPES.pop("bf16")
    peak_rows = peaks(CLOCKS[settings.clock], settings.peak_size, settings.rounds)
    peak = {row["precision"]: row["matmul_gflops"] for row in peak_rows}
    about = {key: getattr(settings, key) for key in ("batch", "evaluations", "rounds", "clock")}
    result: dict[str, Any] = {"benchmark": "throughput", **about, "peaks": peak_rows, "libraries": [], "rows": []}
    for name in settings.peers:
        peer = PEERS[name](settings.width)
        result["libraries"].append({"library": name, "version": peer.version, "network": peer.network})
        for rows in measured(peer, settings, peak):
            result["rows"] += rows
            save(settings.out, result)


if __name__ == "__main__":
    main()
