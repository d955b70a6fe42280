"""A feature extractor, sets of images in every form, and a short way to score them."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

import sims
from sims.data.codec import UINT8
from sims.data.dataset import Dataset
from sims.data.pictures import encode_png
from sims.data.store import Store, StoreHeader
from sims.scoring.options import ScoreOptions

QUICK = ("fd", "kid", "manifold")
EVERY = ScoreOptions().metrics


class Toy:
    """Features that are a fixed linear map of the pixels, computed in double precision; counts what it sees."""

    channels: int | None = None
    resize = "none"

    def __init__(self, shape: tuple[int, ...] = (1, 8, 8), width: int = 6, name: str = "toy") -> None:
        self.name, self.num_features, self.seen = name, width, 0
        self.hash = f"{name}-{width}"
        size = int(np.prod(shape))
        self.matrix = torch.randn(size, width, dtype=torch.float64, generator=torch.manual_seed(0)) / size**0.5

    def __call__(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return (x.double().flatten(1) @ self.matrix).float()


class Rgb(Toy):
    """The same for colour images."""

    channels = 3

    def __init__(self) -> None:
        super().__init__((3, 8, 8), name="rgb")


def in_bytes(data: Dataset) -> Dataset:
    """Digits with values from 0 to 240, as a PNG file holds them."""
    return Dataset(data.raw * 15, None, UINT8, name=data.name)


def evaluate(given_: Any, reference: Any, cache: Path, *, extractor: Any = None, held_out: Any = None, **options: Any):  # type: ignore[no-untyped-def]
    """What `sims evaluate --json` prints of a set of samples."""
    options.setdefault("metrics", QUICK)
    return sims.evaluate(
        given_, reference, held_out=held_out, extractor=extractor, options=options, cache=cache, quiet=True
    ).to_json()


def means(found: dict[str, Any]) -> dict[str, float]:
    return {name: entry["mean"] for name, entry in found["metrics"].items()}


def write_folder(path: Path, raw: np.ndarray) -> Path:
    path.mkdir(parents=True)
    for index, pixels in enumerate(raw):
        (path / f"{index:06d}.png").write_bytes(encode_png(pixels))
    return path


def write_zip(path: Path, raw: np.ndarray) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for index, pixels in enumerate(raw):
            archive.writestr(f"{index:05d}.png", encode_png(pixels))
    return path


def write_parquet(path: Path, raw: np.ndarray) -> Path:
    cells = [{"bytes": encode_png(pixels), "path": None} for pixels in raw]
    pq.write_table(pa.table({"image": cells}), path)
    return path


def write_npz(path: Path, raw: np.ndarray) -> Path:
    np.savez(path, images=raw)
    return path


def write_store(path: Path, raw: np.ndarray) -> Path:
    store = Store.open(path, StoreHeader("pixels", raw.shape[1:], UINT8, len(raw)))
    store.write(0, raw, np.arange(len(raw)), model="m", method="base", w=0.0)
    store.finish()
    return path


WRITERS: dict[str, Callable[[Path, np.ndarray], Path]] = {
    "folder": write_folder,
    "a.zip": write_zip,
    "a.parquet": write_parquet,
    "a.npz": write_npz,
    "store": write_store,
}
