"""What can be said of a job's data before it runs: its shape and size, and a few of the samples."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from sims.data.codec import Codec
from sims.data.dataset import Dataset
from sims.data.mapped import IN_MEMORY, Rows
from sims.data.sources import BUILT_IN, resolve
from sims.errors import UserError
from sims.experiments.base_model import require_shape
from sims.experiments.options import DataOptions, ImproveOptions
from sims.model import Model

SOME = 1024  # images that are read for a pilot


@dataclass(frozen=True)
class DataSize:
    """Shape of an image, classes, codec, where that is known from; images for training and held out (0: not known).

    ``some`` of the data is read, as it lies there; reading all of it takes ``seconds``, and the job ``held`` bytes
    beyond what has been read already.
    """

    shape: tuple[int, ...]
    num_classes: int
    codec: Codec
    source: str
    num_train: int = 0
    num_test: int = 0
    seconds: float = 0.0
    some: Dataset | None = field(default=None, repr=False)
    held: int = 0

    @property
    def values(self) -> int:
        """Values of an image."""
        return math.prod(self.shape)

    @property
    def image_bytes(self) -> int:
        return self.values * np.dtype(self.codec.dtype).itemsize

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


def described(
    options: ImproveOptions, model: Model | None, real: Dataset | None, test: Dataset | None,
    pictures: Dataset | None = None, seconds: float = 0.0,
) -> DataSize:  # fmt: skip
    """Of data that have been opened in ``seconds``, as the job has them: in the space of its model, and the pictures
    that become latents; without data, of the model.
    """
    if real is None or test is None:
        assert model is not None
        return DataSize(model.data_shape, model.num_classes, model.codec, f"of the model {options.model}")
    begin = time.perf_counter()
    shown = pictures or real
    some = shown.subset(np.arange(min(len(shown), SOME)))
    some = replace(some, raw=np.asarray(some.raw))
    if isinstance(shown.raw, Rows):  # what is read where it is looked at has not been read yet
        seconds += (time.perf_counter() - begin) / len(some) * (len(real) + len(test))
    told = model or real
    classes = told.num_classes if model is not None or options.data.conditional else 0
    source = f"read from {options.data.path}"
    held = min((len(real) + len(test)) * shown.raw[:1].nbytes, IN_MEMORY) if isinstance(shown.raw, Rows) else 0
    return DataSize(real.data_shape, classes, told.codec, source, len(real), len(test), seconds, some, held)


def stated(data: DataOptions) -> DataSize | None:
    """Of data that are not at hand, as the options state them; None where they are, and where there are none.

    UserError where they are not and nothing is stated.
    """
    if data.path in (*BUILT_IN, "none"):
        return None
    try:
        resolve(data.path, data.source)
    except UserError as error:
        if not str(error).startswith("no data at"):
            raise
        return _stated(data, str(error))
    return None


def of_model(known: DataSize, model: Model | None, options: ImproveOptions) -> DataSize:
    """Stated data as a given model takes them; UserError where it makes others."""
    require_shape(model, options.model, known.shape, options.data.path)
    return known if model is None else replace(known, num_classes=model.num_classes, codec=model.codec)


def _stated(data: DataOptions, error: str) -> DataSize:
    if data.shape is None:
        raise UserError(f"{error}; without the data dry_run needs its shape: give data.shape, such as 3,32,32")
    if data.conditional and data.classes is None:
        raise UserError(f"{error}; without the data dry_run needs its number of classes: give data.classes, such as 10")
    pixels = data.shape[0] in (1, 3)
    codec = Codec("pixels", 0.0, 255.0, "uint8") if pixels else Codec("identity", -1.0, 1.0, "float32")
    classes = (data.classes or 0) if data.conditional else 0
    return DataSize(data.shape, classes, codec, f"stated; no data at {data.path}")
