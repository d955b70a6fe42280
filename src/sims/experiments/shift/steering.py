"""The base's own samples, labelled, and networks fine-tuned on some of them in chosen proportions."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from sims.config import to_dict
from sims.data.dataset import Dataset, View, at_once
from sims.errors import UserError
from sims.experiments.shift.attributes import Classifier
from sims.experiments.shift.options import ShiftOptions
from sims.experiments.shift.proportion_solver import rejection_ratio
from sims.files import atomic_path, digest
from sims.methods import BASE, Base
from sims.model import Model, load
from sims.results.common import Cost
from sims.runs.directory import Run
from sims.runs.learning_rate import with_rate
from sims.runs.synthesize import synthesize
from sims.sampling import nfe
from sims.seeds import derive_seed, seed_range
from sims.training.options import TrainOptions
from sims.training.trainer import Trainer, read_trained

Array = np.ndarray


def allotted(proportions: Array, count: int) -> Array:
    """How many of ``count`` samples each value gets (K,): the largest remainders are rounded up."""
    exact = proportions * count
    numbers = np.floor(exact + 1e-9).astype(np.int64)
    order = np.argsort(-(exact - numbers), kind="stable")
    numbers[order[: count - int(numbers.sum())]] += 1
    return numbers


def accepted(values: Array, proportions: Array, count: int) -> Array:
    """Positions of at most ``count`` samples with given values (n,), in exactly these proportions, in their own order.

    Rejection sampling without its noise: of every value the first ones are taken. As many as there are for all.
    """
    have = np.bincount(values, minlength=len(proportions))
    ratio = rejection_ratio(proportions, have / len(values))
    count = min(count, int(len(values) / ratio * (1 + 1e-9))) if np.isfinite(ratio) else 0
    numbers = np.minimum(allotted(proportions, count), have)  # rounding up may ask for one more than there is
    taken = [np.flatnonzero(values == value)[:number] for value, number in enumerate(numbers.tolist())]
    return np.sort(np.concatenate(taken))


class Candidates:
    """The base's own samples, drawn in pools as more are needed, with the steering classifier's values."""

    def __init__(self, run: Run, options: ShiftOptions, base: Base, steering: Classifier) -> None:
        self.run, self.options, self.base, self.steering = run, options, base, steering
        self.pools: list[tuple[Dataset, Array]] = []
        self._more()

    @property
    def values(self) -> Array:
        """The value (n,) of every candidate so far."""
        return np.concatenate([values for _, values in self.pools])

    @property
    def cost(self) -> Cost:
        count = len(self.values)
        return Cost(0, count * nfe(self.base.model, self.base.model.sampler), count)

    @cached_property
    def train(self) -> TrainOptions:
        """How networks are fine-tuned: at the rate asked for, or one that is found on the first candidates."""
        base, options = self.base, self.options
        first = self.pools[0][0]
        seed = derive_seed("auxiliary", options.seed)
        return with_rate(base.model, lambda: first, first.fingerprint, options.auxiliary.train, seed, self.run).options

    def _more(self) -> None:
        """One more pool, of seeds of its own."""
        options, base, run = self.options, self.base, self.run
        seeds = seed_range("synthesis", options.seed, options.auxiliary.candidates, len(self.pools))
        folder = run.artefact(
            "synthetic", base.key, to_dict(base.model.sampler), [seeds.start, seeds.stop], options.batch_size
        )
        with run.progress("own samples", len(seeds)) as advance:
            data = synthesize(
                base.model, folder, seeds, method=BASE.name, batch_size=options.batch_size,
                accelerator=run.accelerator, advance=advance,
            )  # fmt: skip
        file = run.path / "artefacts" / f"labelled-{digest(folder.name, self.steering.hash)[:12]}.npy"
        self.pools.append((data, self._labelled(data, file)))

    def _labelled(self, data: Dataset, file: Path) -> Array:
        if self.run.is_main and not file.is_file():
            view, size = View(data), at_once(data.data_shape)
            parts = [self.steering(view[i : i + size].to(self.run.device)) for i in range(0, len(data), size)]
            with atomic_path(file) as temporary, open(temporary, "wb") as stream:
                np.save(stream, np.concatenate(parts))
        self.run.barrier()
        return np.load(file)

    def chosen(self, proportions: Array) -> tuple[Dataset, Array]:
        """Candidates in these proportions, as many as asked for where there can be; and their positions (n,)."""
        settings = self.options.auxiliary
        while True:
            positions = accepted(self.values, proportions, settings.samples)
            full = len(self.values) + settings.candidates > settings.max_candidates
            if len(positions) >= settings.samples or full:
                break
            self._more()
        if len(positions) < 2:
            raise UserError(
                f"of {len(self.values):,} own samples {len(positions)} can be drawn in proportions of "
                f"{np.round(proportions, 4).tolist()}, and a network learns from at least 2: raise "
                "auxiliary.max_candidates"
            )
        first = self.pools[0][0]
        raw = np.concatenate([np.asarray(data.raw[:]) for data, _ in self.pools])[positions]
        labels = None
        if first.labels is not None:
            labels = np.concatenate([data.labels for data, _ in self.pools if data.labels is not None])[positions]
        return replace(first, raw=raw, labels=labels, columns={}), positions

    def network(self, proportions: Array, purpose: str, start: Model | None = None) -> tuple[Model, int]:
        """The base fine-tuned on candidates in these proportions: the model, and how many samples it saw.

        ``start`` is a network to go on from, more gently and for a shorter time. The same proportions and start give
        the same samples and the same network.
        """
        run, base, settings = self.run, self.base, self.options.auxiliary
        seed = derive_seed("auxiliary", self.options.seed)  # one for all: networks then differ by their data alone
        data, positions = self.chosen(proportions)
        chosen = digest(np.ascontiguousarray(positions).tobytes())
        train, images = self.train, settings.images
        if start is not None:
            train, images = replace(train, lr=train.learning_rate * settings.refine_lr), settings.refine
        folder = run.artefact(
            purpose, base.key, [len(self.pools), settings.candidates], self.steering.hash, chosen,
            to_dict(train), images, seed, start and start.hash,
        )  # fmt: skip
        trained = read_trained(folder)
        if trained is None:
            trainer = Trainer(
                start or base.model, data, train, folder, images=images, seed=seed, accelerator=run.accelerator,
            )  # fmt: skip
            with run.progress(f"train the {purpose}", images) as advance:
                trained = trainer.run(advance, run.log)
        return load(trained.last, run.device), len(data)
