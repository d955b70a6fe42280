"""Real data polluted by an earlier model's samples: what standard training makes of it, and what SIMS does.

A first model is trained on the clean real images. At every level, a model is trained from scratch on all real images
and on some of the first model's samples; then remedies are applied that know nothing of which image is real. Every
guided remedy is measured over a range of strengths, and its strength is chosen in two ways, both on seeds that judge
nothing: by the distance to the clean training images (``chosen``: what nobody could do with a real polluted set), and
by a few trusted images (``trusted``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np

from sims.config import read_as
from sims.data.dataset import Dataset
from sims.data.mixture import REAL, chosen, mixture
from sims.data.store import Store
from sims.errors import UserError
from sims.experiments.data import open_judge, read_images, same_data
from sims.experiments.improve.trusted import MOST, Candidates, read_trusted
from sims.experiments.loop.generations import trained_on
from sims.experiments.loop.loop_results import AtLevel, Choice, Level, pollution_result
from sims.experiments.loop.models import Measured, Models
from sims.experiments.loop.options import PollutionOptions
from sims.experiments.loop.remedies import arm_of, check_fits, is_guided
from sims.experiments.loop.repeats import Repeat, check_jobs, folders_and_seeds, work_off, write_grids
from sims.files import write_arrays
from sims.methods import Base
from sims.processes import agree
from sims.results.common import Cost
from sims.results.loop import PollutionResult
from sims.results.summaries import to_json
from sims.runs.directory import Run
from sims.seeds import derive_seed


@dataclass(frozen=True)
class PollutionRepeat(Repeat[PollutionOptions]):
    """One repeat: all levels, from a clean model of its own."""

    command: ClassVar[str] = PollutionResult.experiment

    @property
    def files(self) -> list[tuple[float, Path]]:
        return [(level, self.file(level)) for level in self.options.levels]

    def file(self, level: float) -> Path:
        """What a finished level leaves."""
        return self.path / "levels" / f"{level:g}.json"

    def results(self) -> list[Level]:
        """What every level left."""
        return [read_as(file, Level) for _, file in self.files]

    def work(self, models: Models, train: Dataset) -> None:
        Levels(models, self, train).run()


def run_pollution(run: Run, options: PollutionOptions) -> PollutionResult:
    """Run or continue the pollution experiment in ``run``."""
    check_jobs(options.jobs, run.num_processes)
    train, test = read_images(run, options.data, options.seed)
    _trusted_images(options, train, 0)
    same_data(run, options.data.path, train, test)
    check_fits(options.remedies, train, options)
    judge = open_judge(run, train, test, options.evaluation)
    repeats = [PollutionRepeat(options, folder, seed) for folder, seed in folders_and_seeds(options)]
    work_off(repeats, options.jobs, (train, judge))
    if run.is_main:
        write_grids(run, repeats[0], train)
    return pollution_result(run, options, [repeat.results() for repeat in repeats], judge, (train, test))


def _trusted_images(options: PollutionOptions, train: Dataset, seed: int) -> Dataset:
    """The images that are known to be real: some of the training images, or those of a path."""
    if options.trusted.isdecimal():
        count = int(options.trusted)
        if count > len(train):
            raise UserError(f"trusted is {count:,}, and there are {len(train):,} real images: give fewer")
        return chosen(train, count, derive_seed("trusted", seed))
    return read_trusted(options.trusted, train, options.data.source)


class Levels:
    """All levels of pollution of one repeat."""

    def __init__(self, models: Models, repeat: PollutionRepeat, train: Dataset) -> None:
        self.models, self.repeat, self.train = models, repeat, train
        self.options, self.seed = repeat.options, models.seed
        self.real = train if self.options.data.conditional else train.without_labels()

    def run(self) -> None:
        first: Base | None = None
        for level in self.options.levels:
            if agree(self.repeat.file(level).is_file()):
                continue
            first = first or self.models.base(mixture([(REAL, self.real)]), 0)
            self._level(level, self._data(level, first))
        self.models.forget()

    def _data(self, level: float, first: Base) -> Dataset:
        """All real images, and samples of the first model: those of a lower level are among them."""
        parts = [(REAL, self.real)]
        most = round(max(self.options.levels) / 100 * len(self.real))
        if count := round(level / 100 * len(self.real)):
            folder = self.models.passed_on(first.model, "", 0, most, 0.0)
            parts.append((0, chosen(Store.read(folder), count, derive_seed("pollution", self.seed))))
        return mixture(parts, f"{self.repeat.folder} +{level:g} %")

    def _level(self, level: float, data: Dataset) -> None:
        """Every level uses the same seeds, so that levels are compared pair by pair as well."""
        models, remedies = self.models, self.options.remedies
        base = models.base(data, 0)
        entry = Level(trained_on=trained_on(data, level))
        pictures: dict[str, np.ndarray] = {}
        for name in [name for name in remedies if not is_guided(name)]:
            made = models.made(arm_of(name), base, data, 0, 0)
            entry.arms[name] = AtLevel(models.measure(made.model, 0, f"{name}, +{level:g} %"), 0.0, made.cost)
            pictures[name] = models.pictures(made.model)
        for name in [name for name in remedies if is_guided(name)]:
            pictures[name] = self._guided(name, level, data, base, entry)
        file = self.repeat.file(level)
        if models.run.is_main:
            write_arrays(file.with_suffix(".npz"), pictures)
        models.run.once(file, lambda: to_json(entry))
        shown = ", ".join(f"{label} {arm.measured.figures['fd']:.2f}" for label, arm in entry.arms.items())
        models.run.log(f"{self.repeat.folder}: +{level:g} %: FD to train {shown}")

    def _guided(self, name: str, level: float, data: Dataset, base: Base, entry: Level) -> np.ndarray:
        """A remedy at every strength (0 is the base), and the strengths that the two ways of choosing take."""
        models, options = self.models, self.options
        artefact = models.artefact(name, base, 0)
        curve: dict[float, Measured] = {}
        features: dict[float, np.ndarray] = {}
        for w in (0.0, *sorted(options.strengths)):
            model = models.guided(name, base, artefact, w)
            curve[w] = models.measure(model, 0, f"{name}, w = {w:g}, +{level:g} %")
            features[w] = models.features(model, options.selection_samples)
        choice = self._choice(data, {w: one.figures["fd"] for w, one in curve.items()}, features)
        for label, w in ((name, choice.chosen), (f"{name}-trusted", choice.trusted.w)):
            entry.arms[label] = AtLevel(curve[w], w, Cost(base.images) + artefact.cost)
        entry.strengths[name] = {f"{w:g}": one.figures for w, one in curve.items()}
        entry.choices[name] = choice
        return models.pictures(models.guided(name, base, artefact, choice.chosen))

    def _choice(self, data: Dataset, fd: dict[float, float], features: dict[float, np.ndarray]) -> Choice:
        """The strengths chosen by samples' features (n, D): by the clean training images, and by trusted images."""
        judge, options = self.models.judge, self.options
        clean = {w: judge.frechet(values) for w, values in features.items()}
        best = min(clean, key=lambda w: clean[w])
        candidates = Candidates(features, self._features(data, MOST))
        choice, pool = candidates.choose(self._trusted), self._pool
        sizes = [size for size in options.trusted_sizes if size <= len(pool)]
        reliability = candidates.reliability(pool, sizes, options.trusted_draws, fd, fd[best], self.seed)
        return Choice(
            chosen=best,
            clean={f"{w:g}": value for w, value in clean.items()},
            trusted=replace(choice, by_data=candidates.by_data),
            ratio=fd[choice.w] / fd[best],
            reliability=reliability,
            features=judge.extractor.name,
        )

    @cached_property
    def _trusted(self) -> np.ndarray:
        """Features (n, D) of the trusted images."""
        return self._features(_trusted_images(self.options, self.train, self.seed))

    @cached_property
    def _pool(self) -> np.ndarray:
        """Features (n, D) of real images, to draw trusted sets of other sizes from."""
        return self._features(self.real, MOST)

    def _features(self, data: Dataset, most: int | None = None) -> np.ndarray:
        """Features (n, D) of images, of at most so many."""
        some = data if most is None else chosen(data, min(most, len(data)), self.seed)
        return self.models.judge.features(some.all()[0])
