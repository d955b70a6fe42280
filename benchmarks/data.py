"""Images that data deliver in a second of one core: decoding, the decoded file, batches of it, against training.

    python benchmarks/data.py --data DATA --out benchmarks/results/data.json
    python benchmarks/data.py --data DATA --against OTHER --rounds 5 --out benchmarks/results/data-against.json

DATA is a folder with CIFAR-10's training images as a parquet file, named ...train...; see benchmarks/README.md. The
peer is torch.utils.data.DataLoader over a data set that opens each picture with Pillow when it is asked for, as most
training scripts do: shuffled, batches of 256. Training is that of a U-Net of 0.7 million parameters, smaller than any
that is of use on these images: a loader that is faster than it never makes training wait. All of it runs in one thread
of one process, and what is counted is that process's time on the core, so that other work does not count.

With --against, this checkout and another one of this repository measure in turn, each with its own script and code, and
what is kept are medians and their ratio, this checkout to the other.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from common import save
from sims.data import mapped
from sims.data.dataset import Dataset
from sims.data.pictures import SourceOptions, encode_png
from sims.data.readers import Pictures, open_source
from sims.data.sources import load
from sims.networks.options import NetworkOptions
from sims.sampling import SamplerOptions
from sims.training.base import new_model
from sims.training.trainer import Trainer, TrainOptions
from sims.training.training_noise import DataOrder

BATCH = 256
FILES = 3_000  # pictures in the folder
# With these libraries a collection of garbage takes 0.2 s, and falls into whatever is measured just then.
WITHOUT_COLLECTION = (
    "import gc, runpy, sys; gc.disable(); sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
)


class Opened(TorchDataset):
    """The peer's data set: every picture is decoded when it is asked for."""

    def __init__(self, found: Pictures) -> None:
        self.cells = [found.read(i) for i in range(len(found.names))] if found.kind == "parquet" else None
        self.files = None if self.cells else [str(file) for file in found.files]

    def __len__(self) -> int:
        return len(self.cells or self.files or ())

    def __getitem__(self, i: int) -> torch.Tensor:
        with Image.open(io.BytesIO(self.cells[i]) if self.cells else self.files[i]) as image:  # type: ignore[index]
            pixels = np.array(image.convert("RGB"))
        return torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1


@contextmanager
def everything_on_disk() -> Iterator[None]:
    """Sets of any size are decoded into a file."""
    before, mapped.IN_MEMORY = mapped.IN_MEMORY, 0
    try:
        yield
    finally:
        mapped.IN_MEMORY = before


def epoch(data: Dataset) -> Callable[[], None]:
    """All batches of an epoch, in the order of training, in model space."""
    order = DataOrder(0, len(data))

    def run() -> None:
        for first in range(0, len(data) - BATCH + 1, BATCH):
            data.batch(order.indices(first, BATCH))

    return run


def loader(found: Pictures) -> Callable[[], None]:
    """The same with the peer."""
    batches = DataLoader(Opened(found), BATCH, shuffle=True, drop_last=True)

    def run() -> None:
        for _ in batches:
            pass

    return run


def training(data: Dataset, steps: int) -> float:
    """Images a second that the training of a small U-Net takes, by the median step."""
    options = NetworkOptions(type="ddpmpp", width=32, channel_mult=(1, 2), blocks=1, attention=(8,), sigma_data=0.5)
    model = new_model(data, options, SamplerOptions(), 0)
    print(f"training: {sum(p.numel() for p in model.denoiser.parameters()):,} parameters")  # type: ignore[attr-defined]
    stamps: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(model, data, TrainOptions(batch=BATCH), Path(folder), images=steps * BATCH, seed=0)
        trainer.run(lambda count: stamps.append(time.process_time()))
    return BATCH / statistics.median(np.diff(stamps[2:]).tolist())


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    begin = time.process_time()
    found = work()
    return found, time.process_time() - begin


def measure(path: Path, rounds: int) -> dict[str, float]:
    """Images a second of everything but training, for one source."""
    found = open_source(path).train
    assert isinstance(found, Pictures)
    count, rates = len(found.names), {}
    with tempfile.TemporaryDirectory() as folder, everything_on_disk():
        options = SourceOptions(cache=Path(folder))
        on_disk, seconds = timed(lambda: load(path, options=options))
        rates["decoded into the file, once"] = count / seconds
        rates["opened again"] = count / timed(lambda: load(path, options=options))[1]
        mapped.IN_MEMORY = 1 << 40
        in_memory, seconds = timed(lambda: load(path))
        rates["decoded into memory"] = count / seconds
        assert np.array_equal(in_memory.raw, on_disk.raw)
        rivals = {
            "batches from the file": epoch(on_disk),
            "batches from memory": epoch(in_memory),
            "DataLoader over Pillow": loader(found),
        }
        whole = count // BATCH * BATCH
        for name, run in rivals.items():
            run()  # warm up
            rates[name] = whole / statistics.median(timed(run)[1] for _ in range(rounds))
        return rates


def compared(other: Path, settings: argparse.Namespace) -> dict[str, Any]:
    """Medians of this checkout and of another, which measure in turn, and the ratio of the two."""
    checkouts = {"here": Path(__file__).parents[1], "other": other}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in checkouts}
    for number in range(settings.rounds):
        for name, checkout in checkouts.items() if number % 2 else reversed(checkouts.items()):
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "data.json"
                words = ["--data", settings.data, "--rounds", 2, "--steps", settings.steps, "--out", out]
                scripts = checkout.resolve() / "benchmarks"
                command = [sys.executable, "-c", WITHOUT_COLLECTION, scripts / "data.py", *words]
                environment = {**os.environ, "PYTHONPATH": f"{checkout.resolve() / 'src'}:{scripts}"}
                subprocess.run([*map(str, command)], env=environment, check=True, capture_output=True)
                result = json.loads(out.read_text())
            rates = {
                f"{source}: {what}": rate
                for source, table in result["images_per_core_second"].items()
                for what, rate in table.items()
            }
            found[name].append({**rates, "training": result["training_takes"]})
    medians = {
        name: {what: statistics.median(run[what] for run in runs) for what in runs[0]} for name, runs in found.items()
    }
    ratios = {what: round(rate / medians["other"][what], 3) for what, rate in medians["here"].items()}
    for what, ratio in ratios.items():
        print(f"{ratio:.3f}  {what}: {medians['here'][what]:,.0f} against {medians['other'][what]:,.0f} images/s")
    return {"rounds": settings.rounds, "images_per_core_second": medians, "ratio": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--against", type=Path, help="another checkout, to compare with")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/data.json"))
    settings = parser.parse_args()
    how = f"--data DATA --rounds {settings.rounds} --steps {settings.steps} --out {settings.out}"
    if settings.against:
        sys.argv[1:] = f"{how} --against OTHER".split()
        return save(settings.out, compared(settings.against, settings))
    sys.argv[1:] = how.split()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    parquet = next(settings.data.glob("*train*.parquet"))
    data = load(parquet).without_labels()
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder) / "pictures"
        pictures.mkdir()
        for i in range(FILES):
            (pictures / f"{i:05d}.png").write_bytes(encode_png(data.raw[i]))
        sources = {
            f"parquet, {len(data):,} JPEG of 32x32": measure(parquet, settings.rounds),
            f"folder, {FILES:,} PNG of 32x32": measure(pictures, settings.rounds),
        }
    taken = training(data, settings.steps)
    rounded = {name: {key: float(f"{rate:.3g}") for key, rate in rates.items()} for name, rates in sources.items()}
    for name, rates in rounded.items():
        print(name, *(f"  {key}: {rate:,.0f} images/s" for key, rate in rates.items()), sep="\n")
    print(f"training of a small U-Net takes {taken:,.0f} images/s")
    result = {"batch": BATCH, "images_per_core_second": rounded, "training_takes": float(f"{taken:.3g}")}
    save(settings.out, result)


if __name__ == "__main__":
    main()
