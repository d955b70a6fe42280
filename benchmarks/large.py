"""Large and honest inputs load: a gigabyte of weights, a picture of 100 megapixels, a million rows of every kind.

    python benchmarks/large.py --out benchmarks/results/large.json

Each input is made in a temporary folder by one process and opened by another, as the jobs open it. What is kept are the
seconds that opening took and the most memory that the process held, beside what the input holds once it is open; a
process that has only imported the package is the floor of both. Nothing is compared with another program: the question
is whether limits that are there for harmful files stand in the way of large ones.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from common import save
from sims.data.codec import UINT8
from sims.data.dataset import Dataset
from sims.data.pictures import SourceOptions, encode_png
from sims.data.sources import load, load_pair
from sims.data.store import Store, StoreHeader
from sims.experiments.cost.memory import highest
from sims.model import load as load_model
from sims.networks.options import NetworkOptions
from sims.sampling import SamplerOptions
from sims.training.base import new_model

NAMES = tuple(f"class {i}" for i in range(1000))


# -- inputs ------------------------------------------------------------------------------------------------------------


def weights(path: Path, scale: float) -> None:
    """A network of 256 million parameters, 1 GB in float32."""
    width = max(8, round(2900 * scale**0.5))
    options = NetworkOptions(width=width, blocks=7, embedding=256, sigma_data=0.5)
    data = Dataset(np.random.default_rng(0).integers(0, 256, (9, 3, 8, 8), np.uint8), None, UINT8)
    new_model(data, options, SamplerOptions(), 0).save(path)


def picture(path: Path, scale: float, suffix: str) -> None:
    """A photograph's statistics, nearly: smooth colours with grain. 10,000 x 10,000 pixels."""
    side = max(64, round(10_000 * scale**0.5))
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    grain = rng.integers(0, 12, (side, side, 1), np.uint8)
    path.mkdir()
    for i in range(2):
        Image.fromarray((np.asarray(smooth) // 2 + grain + i).astype(np.uint8)).save(path / f"{i}.{suffix}")


def parquet(path: Path, scale: float) -> None:
    """Rows of encoded pictures with labels in words, and beside it rows of arrays."""
    count, rng = round(1e6 * scale), np.random.default_rng(0)
    some = [{"bytes": encode_png(p), "path": None} for p in rng.integers(0, 256, (1000, 3, 8, 8), np.uint8)]
    cell = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = pa.array(some, cell).take(pa.array(np.arange(count) % 1000))
    words = pa.array(NAMES).take(pa.array(rng.integers(0, 1000, count)))
    pq.write_table(pa.table({"image": cells, "label": words}), path, row_group_size=10_000)


def arrays(path: Path, scale: float) -> None:
    count, rng = round(1e6 * scale), np.random.default_rng(0)
    np.savez(path, images=rng.integers(0, 256, (count, 8, 8, 3), np.uint8), labels=np.arange(count) % 1000)


def store(path: Path, scale: float) -> None:
    count, rng = round(1e6 * scale), np.random.default_rng(0)
    opened = Store.open(path, StoreHeader("pixels", (1, 8, 8), UINT8, count, 1000, NAMES, {}, 50_000))
    for shard in opened.missing():
        rows = np.array(opened.header.indices(shard))
        raw = rng.integers(0, 256, (len(rows), 1, 8, 8), np.uint8)
        opened.write(shard, raw, rows, rows % 1000, model="m", method="base", w=0.0)
    opened.finish()


def folder(path: Path, scale: float) -> None:
    """Class folders of a hundred thousand files."""
    encoded = [encode_png(p) for p in np.random.default_rng(0).integers(0, 256, (100, 3, 8, 8), np.uint8)]
    for i in range(round(1e5 * scale)):
        if i < 1000:
            (path / NAMES[i]).mkdir(parents=True)
        (path / NAMES[i % 1000] / f"{i:06d}.png").write_bytes(encoded[i % 100])


def opened_model(path: str) -> tuple[str, int]:
    model = load_model(path)
    count = sum(p.numel() for p in model.denoiser.parameters())  # type: ignore[attr-defined]
    return f"{count:,} parameters", 4 * count


def opened_pair(path: str) -> tuple[str, int]:
    train, test = load_pair(path)
    classes = f", {train.num_classes:,} classes" if train.num_classes else ""
    return f"{len(train):,} and {len(test):,} samples{classes}", train.raw.size + test.raw.size


def opened_small(path: str) -> tuple[str, int]:
    data = load(path, options=SourceOptions(size=64))
    return f"{len(data)} pictures of {data.data_shape}", data.raw.size


Make = Callable[[Path, float], None]
INPUTS: dict[str, tuple[str, Make, Callable[[str], tuple[str, int]]]] = {
    "nothing": ("", lambda path, scale: None, lambda path: ("", 0)),
    "weights": ("model", weights, opened_model),
    "two JPEG of 100 megapixels, size 64": ("jpg", lambda path, scale: picture(path, scale, "jpg"), opened_small),
    "two PNG of 100 megapixels, size 64": ("png", lambda path, scale: picture(path, scale, "png"), opened_small),
    "parquet, a million PNG with words": ("rows.parquet", parquet, opened_pair),
    "npz, a million": ("rows.npz", arrays, opened_pair),
    "store, a million": ("store", store, opened_pair),
    "class folders, 100,000 PNG": ("folder", folder, opened_pair),
}


def measured(name: str, path: str) -> dict[str, object]:
    """What opening an input took, in this process."""
    begin = time.perf_counter()
    what, held = INPUTS[name][2](path)
    return {
        "opened": what,
        "seconds": round(time.perf_counter() - begin, 2),
        "peak_mb": round(highest() / 1e6),
        "holds_mb": round(held / 1e6),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="of all sizes, to try it out")
    parser.add_argument("--make", nargs=2, metavar=("INPUT", "PATH"), help="make one input")
    parser.add_argument("--measure", nargs=2, metavar=("INPUT", "PATH"), help="open one input, and say what it took")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/large.json"))
    settings = parser.parse_args()
    if settings.make:
        INPUTS[settings.make[0]][1](Path(settings.make[1]), settings.scale)
        return
    if settings.measure:
        print(json.dumps(measured(*settings.measure)))
        return
    found = {}
    for name, (place, _, _) in INPUTS.items():
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / place
            own = [sys.executable, str(Path(__file__).resolve()), "--scale", str(settings.scale)]
            # In a process of its own: the memory that it takes would count as that of its children.
            subprocess.run([*own, "--make", name, str(path)], check=True, cwd=scratch)
            files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path] * bool(place)
            size = sum(file.stat().st_size for file in files)
            done = subprocess.run([*own, "--measure", name, str(path)], capture_output=True, text=True, cwd=scratch)
            if done.returncode:
                raise SystemExit(f"{name}: {done.stderr}")
            found[name] = {"file_mb": round(size / 1e6), **json.loads(done.stdout)}
            print(name, *(f"  {key}: {value}" for key, value in found[name].items()), sep="\n", flush=True)
    save(settings.out, {"scale": settings.scale, "inputs": found})


if __name__ == "__main__":
    main()
