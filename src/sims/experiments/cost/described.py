"""What is known of a job's data before it runs: its shape and size, and a few of the pictures."""

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
from sims.experiments.cost.judge_rates import Pictures
from sims.experiments.options import DataOptions, ImproveOptions
from sims.interop.latents import latent_codec, latent_shape
from sims.model import Model

SOME = 1024  # pictures that are read for a pilot
IN_MEMORY = 1 << 30  # bytes of decoded pictures that a job holds: more stay in a file


@dataclass(frozen=True)
class Known:
    """Shape of an image, classes, codec, how it is known; images for training and held out (0: not known).

    ``seconds`` is what reading all of it takes. ``pictures`` are some of it, as they are read.
    """

    shape: tuple[int, ...]
    classes: int
    codec: Codec
    source: str
    train: int = 0
    test: int = 0
    seconds: float = 0.0
    pictures: list[Dataset] = field(default_factory=list, repr=False)

    @property
    def values(self) -> int:
        """Values of an image."""
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of a value."""
        return np.dtype(self.codec.dtype).itemsize

    @property
    def held(self) -> int:
        """Bytes of data that a job holds, beyond the pictures that are here already."""
        here = len(self.pictures[0]) if self.pictures else 0
        return min(max(0, self.train + self.test - here) * self.values * self.itemsize, IN_MEMORY)


def known_data(options: ImproveOptions, model: Model | None) -> Known:
    """Read some of the data; where it is not at hand, take its stated shape. UserError where there is neither."""
    data = options.data
    if model is not None and data.path == "none":
        return Known(model.data_shape, model.num_classes, model.codec, f"of the model {options.model}")
    begin = time.perf_counter()
    try:
        load(data.path, options=data.source, limit=2)
    except UserError as error:
        if not str(error).startswith("no data at"):
            raise
        return _of_model(options, model) if model is not None else _stated(data, str(error))
    found = _read(data, options.seed, time.perf_counter() - begin)
    if len(found.shape) != 3:
        raise UserError(f"{data.path} holds points of shape {found.shape}, not images (C, H, W): give images")
    if data.conditional and found.pictures[0].labels is None:
        raise UserError(
            f"data.conditional needs labels, and {data.path} has none: use class subfolders or a label column"
        )
    if model is not None:
        return replace(found, shape=model.data_shape, classes=model.num_classes, codec=model.codec)
    if options.vae is not None and found.codec.kind == "pixels":
        codec = latent_codec(options.vae)
        found = replace(found, shape=latent_shape(codec, found.shape), codec=codec)
    return found if data.conditional else replace(found, classes=0)


def _of_model(options: ImproveOptions, model: Model) -> Known:
    source = f"of the model {options.model}; no data at {options.data.path}"
    return Known(model.data_shape, model.num_classes, model.codec, source)


def _stated(data: DataOptions, error: str) -> Known:
    if data.shape is None:
        raise UserError(f"{error}; without the data --dry-run needs its shape: give --data.shape, such as 3,32,32")
    if data.conditional and data.classes is None:
        raise UserError(
            f"{error}; without the data --dry-run needs its number of classes: give --data.classes, such as 10"
        )
    pixels = data.shape[0] in (1, 3)
    codec = Codec("pixels", 0.0, 255.0, "uint8") if pixels else Codec("identity", -1.0, 1.0, "float32")
    classes = (data.classes or 0) if data.conditional else 0
    return Known(data.shape, classes, codec, f"stated; no data at {data.path}")


def _read(data: DataOptions, seed: int, opening: float) -> Known:
    """Count the data and read a part of it; the time of the whole follows from that of the part."""
    if data.path in BUILT_IN:
        begin = time.perf_counter()
        train, test = load_pair(data.path, data.test, data.test_fraction, seed, options=data.source, limit=data.limit)
        spent = time.perf_counter() - begin
        return Known(train.data_shape, train.num_classes, train.codec, f"read from {data.path}", len(train),
                     len(test), spent, [train])  # fmt: skip
    total, test_count = count_pair(data.path, data.test, data.test_fraction, data.source)
    count = min(total, data.limit or total)
    begin = time.perf_counter()
    some = load(data.path, options=data.source, limit=min(count, SOME))
    each = max(time.perf_counter() - begin - opening, 0.0) / len(some)
    seconds = opening + each * (total + test_count if data.limit is None else count + test_count)
    source = f"read from {data.path}"
    return Known(some.data_shape, some.num_classes, some.codec, source, count, test_count, seconds, [some])


def stand_in(known: Known) -> Dataset:
    """Data of this shape, classes and codec for a pilot to train on: some of it, or random values."""
    if known.pictures and known.pictures[0].data_shape == known.shape and known.codec == known.pictures[0].codec:
        data = known.pictures[0]
        return data if known.classes else data.without_labels()
    rng = np.random.default_rng(0)
    normal = rng.standard_normal((64, *known.shape), dtype=np.float32)
    raw = known.codec.decode(torch.from_numpy(0.5 * normal))
    names = tuple(map(str, range(known.classes)))
    return Dataset(raw, rng.integers(0, known.classes, 64) if names else None, known.codec, names, "stand-in")


def pictures(known: Known) -> Pictures:
    """Some of the pictures, for the judge's pilot. UserError without them."""
    if not known.pictures:
        raise UserError("the data is not at hand")
    data = known.pictures[0]
    x, labels = data.all()
    return Pictures(x[:SOME], None if labels is None else labels[:SOME], data.codec, data.num_classes, known.train,
                    known.test)  # fmt: skip
