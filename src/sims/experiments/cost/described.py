"""What can be said of a job's data before it runs: its shape and size, and a few of the samples."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from sims.data.codec import Codec
from sims.data.dataset import Dataset
from sims.data.sources import BUILT_IN, count_pair, load, load_pair
from sims.errors import UserError
from sims.experiments.options import DataOptions, ImproveOptions
from sims.interop.latents import latent_codec, latent_shape
from sims.model import Model

SOME = 1024  # images that are read for a pilot
IN_MEMORY = 1 << 30  # bytes of decoded images that a job holds: more stay in a file


@dataclass(frozen=True)
class DataSize:
    """Shape of an image, classes, codec, where that is known from; images for training and held out (0: not known).

    ``some`` of the data is read, as it lies there; reading all of it takes ``seconds``.
    """

    shape: tuple[int, ...]
    num_classes: int
    codec: Codec
    source: str
    num_train: int = 0
    num_test: int = 0
    seconds: float = 0.0
    some: Dataset | None = field(default=None, repr=False)

    @property
    def values(self) -> int:
        """Values of an image."""
        return math.prod(self.shape)

    @property
    def image_bytes(self) -> int:
        return self.values * np.dtype(self.codec.dtype).itemsize

    @property
    def held(self) -> int:
        """Bytes of data that a job holds, beyond what has been read already."""
        here = len(self.some) if self.some is not None else 0
        return min(max(0, self.num_train + self.num_test - here) * self.image_bytes, IN_MEMORY)

    def stand_in(self) -> Dataset:
        """Data of this shape, classes and codec for a pilot to train on: what has been read, or random values."""
        some = self.some
        if some is not None and some.data_shape == self.shape and some.codec == self.codec:
            return some if self.num_classes else some.without_labels()
        rng = np.random.default_rng(0)
        normal = rng.standard_normal((64, *self.shape), dtype=np.float32)
        raw = self.codec.decode(torch.from_numpy(0.5 * normal))
        names = tuple(map(str, range(self.num_classes)))
        return Dataset(raw, rng.integers(0, self.num_classes, 64) if names else None, self.codec, names, "stand-in")


def described_data(options: ImproveOptions, model: Model | None) -> DataSize:
    """Read some of the data; where it is not at hand, take its stated shape. UserError where there is neither."""
    data = options.data
    if model is not None and data.path == "none":
        return DataSize(model.data_shape, model.num_classes, model.codec, f"of the model {options.model}")
    begin = time.perf_counter()
    try:
        load(data.path, options=data.source, limit=2)
    except UserError as error:
        if not str(error).startswith("no data at"):
            raise
        if model is None:
            return _stated(data, str(error))
        source = f"of the model {options.model}; no data at {data.path}"
        return DataSize(model.data_shape, model.num_classes, model.codec, source)
    size, some = _read(data, options.seed, time.perf_counter() - begin)
    if len(size.shape) != 3:
        raise UserError(f"{data.path} holds points of shape {size.shape}, not images (C, H, W): give images")
    if data.conditional and some.labels is None:
        raise UserError(
            f"data.conditional needs labels, and {data.path} has none: use class subfolders or a label column"
        )
    if model is not None:
        return replace(size, shape=model.data_shape, num_classes=model.num_classes, codec=model.codec)
    if options.vae is not None and size.codec.kind == "pixels":
        codec = latent_codec(options.vae)
        size = replace(size, shape=latent_shape(codec, size.shape), codec=codec)
    return size if data.conditional else replace(size, num_classes=0)


def _stated(data: DataOptions, error: str) -> DataSize:
    if data.shape is None:
        raise UserError(f"{error}; without the data dry_run needs its shape: give data.shape, such as 3,32,32")
    if data.conditional and data.classes is None:
        raise UserError(f"{error}; without the data dry_run needs its number of classes: give data.classes, such as 10")
    pixels = data.shape[0] in (1, 3)
    codec = Codec("pixels", 0.0, 255.0, "uint8") if pixels else Codec("identity", -1.0, 1.0, "float32")
    classes = (data.classes or 0) if data.conditional else 0
    return DataSize(data.shape, classes, codec, f"stated; no data at {data.path}")


def _read(data: DataOptions, seed: int, opening: float) -> tuple[DataSize, Dataset]:
    """Count the data and read a part of it; the time of the whole follows from that of the part."""
    begin = time.perf_counter()
    if data.path in BUILT_IN:
        some, test = load_pair(data.path, data.test, data.test_fraction, seed, options=data.source, limit=data.limit)
        num_train, num_test, seconds = len(some), len(test), time.perf_counter() - begin
    else:
        total, num_test = count_pair(data.path, data.test, data.test_fraction, data.source)
        num_train = min(total, data.limit or total)
        some = load(data.path, options=data.source, limit=min(num_train, SOME))
        each = max(time.perf_counter() - begin - opening, 0.0) / len(some)
        seconds = opening + each * ((total if data.limit is None else num_train) + num_test)
    source = f"read from {data.path}"
    size = DataSize(some.data_shape, some.num_classes, some.codec, source, num_train, num_test, seconds, some)
    return size, some
