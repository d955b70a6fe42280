"""Samples to look at: drawn one after the other, and given up when others are asked for."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sims.config import JSON, from_dict, read_as
from sims.data.dataset import Dataset, View
from sims.data.pictures import as_picture
from sims.errors import UserError
from sims.experiments.data import read_data
from sims.experiments.options import DataOptions
from sims.interop.latents import to_images
from sims.metrics.copies import nearest
from sims.model import Model
from sims.runs.measure import rounded
from sims.sampling import SamplerOptions, SamplingStep, nfe

TILE = 128  # pixels that a small picture is enlarged to, at least
MOST = 64  # pictures at once


class SupersededError(Exception):
    """Other samples have been asked for in the meantime."""


@dataclass(frozen=True)
class Samples:
    """Pictures (n, H, W, C) uint8 of these seeds, what one cost in evaluations, and those that diverged."""

    images: np.ndarray
    seeds: tuple[int, ...]
    evaluations: int
    diverged: int = 0

    def tiles(self) -> list[Image.Image]:
        return [tile(image) for image in self.images]


class Turns:
    """One draws at a time, and whoever is no longer waited for gives up at its next step."""

    def __init__(self) -> None:
        self._drawing, self._counting = threading.Lock(), threading.Lock()
        self._latest: dict[object, int] = {}

    def take(self, place: object) -> int:
        """The number of a new drawing at a place; earlier ones there are superseded."""
        with self._counting:
            self._latest[place] = self._latest.get(place, 0) + 1
            return self._latest[place]

    def check(self, place: object, number: int) -> None:
        """SupersededError where a later one has come."""
        if self._latest.get(place) != number:
            raise SupersededError

    def draw(
        self,
        place: object,
        number: int,
        build: Callable[[], Model],
        sampler: Callable[[Model], SamplerOptions],
        seeds: Sequence[int],
        label: int | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Samples:
        """Samples of a model. SupersededError where others are asked for; UserError where there are no pictures."""
        with self._drawing:
            self.check(place, number)
            model = build()
            if len(model.data_shape) != 3:
                raise UserError(f"the model makes data of shape {tuple(model.data_shape)}, which are no pictures")
            options = sampler(model)
            if label is not None and not model.num_classes:
                label = None

            def step(now: SamplingStep) -> None:
                self.check(place, number)
                progress(now.index + 1, now.num_steps)

            labels = None if label is None else [label] * len(seeds)
            x = model.sample(seeds, labels=labels, sampler=options, batch_size=len(seeds), callback=step)
            return samples_of(model, x, tuple(seeds), nfe(model, options))  # type: ignore[arg-type]


def samples_of(model: Model, x: torch.Tensor, seeds: tuple[int, ...], evaluations: int) -> Samples:
    """Model space as pictures, rounded to the values that the data can have."""
    kept = rounded(x, model.codec)
    return Samples(to_images(model.codec, kept.x), seeds, evaluations, kept.diverged)


def tile(image: np.ndarray, least: int = TILE) -> Image.Image:
    """A picture (H, W, C) uint8, small ones enlarged by whole pixels."""
    factor = max(1, -(-least // max(image.shape[:2])))
    array = image.repeat(factor, axis=0).repeat(factor, axis=1)
    return as_picture(array.transpose(2, 0, 1))


@dataclass(frozen=True)
class Neighbour:
    """The training picture nearest to a sample, (H, W, C) uint8, and how far it is, in model space."""

    image: np.ndarray
    distance: float
    index: int


def neighbour(run: Path, image: np.ndarray) -> Neighbour:
    """The run's training picture that is nearest to a picture (H, W, C). UserError where its data are not at hand."""
    data = training_data(run)
    raw = image.transpose(2, 0, 1)[None]
    if raw.shape[1:] != data.data_shape:
        raise UserError(f"the sample is of shape {raw.shape[1:]}, and the training data of {data.data_shape}")
    x = torch.from_numpy(raw.astype(np.float32) / 127.5 - 1)
    found = nearest(x, View(data))  # type: ignore[arg-type]
    index = int(found.indices[0])
    return Neighbour(data.codec.to_images(data.batch([index])[0])[0], float(found.distances[0]), index)


@functools.lru_cache(maxsize=2)
def training_data(run: Path) -> Dataset:
    """The data that a run was trained on, if they are still the same. UserError where not, or where it had none."""
    config = read_as(run / "config.json", dict[str, JSON])
    table, seed = config.get("data"), config.get("seed", 0)
    if not isinstance(table, dict) or table.get("path") == "none":
        raise UserError("the run had no training pictures")
    if not (run / "data.json").is_file():
        raise UserError("the run has not read its training pictures yet")
    train, _ = read_data(from_dict(DataOptions, table, "data."), int(str(seed)))
    latent = config.get("vae") is not None  # what is kept is then the fingerprint of latents
    if not latent and read_as(run / "data.json", dict[str, JSON]).get("train") != train.fingerprint:
        raise UserError("the training pictures have changed since the run began: restore them to see the nearest ones")
    return train
