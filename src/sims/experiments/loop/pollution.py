"""Real data polluted by an earlier model's samples: what standard training makes of it, and what SIMS does.

A first model is trained on the clean real images. At every level, a model is trained from scratch on all real images
and on some of the first model's samples; then remedies are applied that know nothing of which image is real. Every
guided remedy is measured over a range of strengths, and its strength is chosen in two ways, both on seeds that judge
nothing: by the distance to the clean training images (``chosen``: what nobody could do with a real polluted set), and
by a few trusted images (``trusted``).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sims.data.dataset import Dataset
from sims.data.mixture import REAL, accounting, chosen, mixture
from sims.data.store import Store
from sims.errors import UserError
from sims.experiments.data import open_judge, read_images, same_data
from sims.experiments.improve.trusted import MOST, Candidates, read_trusted
from sims.experiments.loop.models import Arm, Models
from sims.experiments.loop.options import PollutionOptions, is_guided
from sims.experiments.loop.pollution_summary import pollution_summary
from sims.experiments.loop.repeats import Opened, check_jobs, configuration, open_again, work_off
from sims.files import atomic_path, read_json, write_json
from sims.methods import Artefact, Base
from sims.model import Model
from sims.processes import agree
from sims.runs.directory import Run
from sims.seeds import derive_seed, seed_range


@dataclass(frozen=True)
class Task:
    """One repeat: its folder below the run's, and its seed."""

    options: PollutionOptions
    folder: str
    seed: int

    @property
    def path(self) -> Path:
        return self.options.run / self.folder

    @property
    def finished(self) -> bool:
        return all(self.file(level).is_file() for level in self.options.levels)

    def file(self, level: float) -> Path:
        """What a finished level leaves."""
        return self.path / "levels" / f"{level:g}.json"

    def results(self) -> list[dict[str, Any]]:
        """What every level left."""
        return [read_json(self.file(level)) for level in self.options.levels]


def run_pollution(options: PollutionOptions, run: Run) -> dict[str, Any]:
    """Run or continue the pollution experiment in ``run``; returns the summary that ``summary.json`` holds."""
    check_jobs(options.jobs, run.num_processes)
    train, test = read_images(run, options.data, options.seed)
    _trusted_images(options, train, 0)
    same_data(run, {"train": train.fingerprint, "test": test.fingerprint}, options.data.path)
    judge = open_judge(run, train, test, options.evaluation)
    tasks = [
        Task(options, f"repeats/{index:02d}", derive_seed("repeat", options.seed, index))
        for index in range(options.repeats)
    ]
    work_off(repeat, tasks, options.jobs, (train, judge))
    summary = pollution_summary(run, options, judge, [task.results() for task in tasks], (train, test))
    if run.is_main:
        _grids(run, tasks[0], train)
        write_json(run.path / "summary.json", summary)
    run.barrier()
    return summary


def repeat(task: Task, opened: Opened | None = None) -> None:
    """One repeat, run or continued; ``opened`` are the data and the judge, where this process has them."""
    options = task.options
    run = Run(task.path, configuration(options, task=task.seed))
    try:
        train, judge = opened or open_again(options, options.run / "references", run.device)
        Levels(Models(run, options, judge, task.seed), task, train).run()
    finally:
        run.close()


def _trusted_images(options: PollutionOptions, train: Dataset, seed: int) -> Dataset:
    """The images that are known to be real: some of the training images, or those of a path."""
    if options.trusted.isdigit():
        count = int(options.trusted)
        if count > len(train):
            raise UserError(f"trusted is {count:,}, and there are {len(train):,} real images: give fewer")
        return chosen(train, count, derive_seed("trusted", seed))
    return read_trusted(options.trusted, train, options.data.source)


class Levels:
    """All levels of pollution of one repeat."""

    def __init__(self, models: Models, task: Task, train: Dataset) -> None:
        self.models, self.task, self.train = models, task, train
        self.options, self.seed = task.options, models.seed
        self.real = train if self.options.data.conditional else train.without_labels()

    def run(self) -> None:
        first: Base | None = None
        for level in self.options.levels:
            if agree(self.task.file(level).is_file()):
                continue
            first = first or self.models.base(mixture([(REAL, self.real)]), 0)
            self._level(level, self._data(level, first))
        self.models.forget()

    def _data(self, level: float, first: Base) -> Dataset:
        """All real images, and samples of the first model: those of a lower level are among them."""
        parts = [(REAL, self.real)]
        most = round(max(self.options.levels) / 100 * len(self.real))
        if count := round(level / 100 * len(self.real)):
            folder = self.models.passed_on(first.model, Arm("standard", "standard"), 0, most, 0.0)
            parts.append((0, chosen(Store.read(folder), count, derive_seed("pollution", self.seed))))
        return mixture(parts, f"{self.task.folder} +{level:g} %")

    def _level(self, level: float, data: Dataset) -> None:
        """Every level uses the same seeds, so that levels are compared pair by pair as well."""
        models, options = self.models, self.options
        base = models.base(data, 0)
        arms: dict[str, Any] = {}
        entry: dict[str, Any] = {"level": level, "accounting": accounting(data), "arms": arms, "strengths": {}}
        pictures: dict[str, np.ndarray] = {}
        for name in [name for name in options.remedies if not is_guided(name)]:
            made = models.made(Arm(name, name), base, data, 0, 0)
            measured = models.measure(made.model, 0, f"{name}, +{level:g} %")
            arms[name] = {**measured, "w": 0.0, "cost": made.cost.to_json()}
            pictures[name] = models.pictures(made.model)
        for name in [name for name in options.remedies if is_guided(name)]:
            artefact = models.artefact(name, base, 0)
            found = self._guided(name, level, data, base, artefact)
            cost = models.made(Arm(name, name, 1.0), base, data, 0, 0).cost.to_json()
            curve = found.pop("curve")
            for label, w in ((name, found["chosen"]), (f"{name}-trusted", found["trusted"]["w"])):
                arms[label] = {**curve[f"{w:g}"], "w": w, "cost": cost}
            entry["strengths"][name] = {w: measured["figures"] for w, measured in curve.items()}
            entry.setdefault("choices", {})[name] = found
            pictures[name] = models.pictures(self._model(name, base, artefact, found["chosen"]))
        self._pictures(level, pictures)
        self.models.run.once(self.task.file(level), lambda: entry)
        shown = ", ".join(f"{label} {arm['figures']['fd']:.2f}" for label, arm in arms.items())
        self.models.run.log(f"{self.task.folder}: +{level:g} %: FD to train {shown}")

    def _model(self, name: str, base: Base, artefact: Artefact, w: float) -> Model:
        return base.model if w == 0 else self.models.guided(name, base, artefact, w)

    def _guided(self, name: str, level: float, data: Dataset, base: Base, artefact: Artefact) -> dict[str, Any]:
        """A remedy at every strength (0 is the base), and the strengths that the two ways of choosing take."""
        models, options, judge = self.models, self.options, self.models.judge
        curve, features, clean = {}, {}, {}
        for w in (0.0, *sorted(options.strengths)):
            model = self._model(name, base, artefact, w)
            curve[f"{w:g}"] = models.measure(model, 0, f"{name}, w = {w:g}, +{level:g} %")
            clean[w], features[w] = self._selection(model)
        best = min(clean, key=lambda w: clean[w])
        candidates = Candidates(features, self._features(data, MOST))
        images = _trusted_images(options, self.train, self.seed)
        choice = candidates.choose(self._features(images))
        scores = {w: curve[f"{w:g}"]["figures"]["fd"] for w in clean}
        pool = self._features(self.real, MOST)
        sizes = [size for size in options.trusted_sizes if size <= len(pool)]
        reliable = candidates.reliability(pool, sizes, options.trusted_draws, scores, scores[best], self.seed)
        return {
            "curve": curve,
            "chosen": best,
            "fd_selection": {f"{w:g}": fd for w, fd in clean.items()},
            "trusted": {**asdict(choice), "ratio": scores[choice.w] / scores[best]},
            "reliability": {str(one.size): asdict(one) for one in reliable},
            "rule_features": judge.extractor.name,
        }

    def _features(self, data: Dataset, most: int | None = None) -> np.ndarray:
        """Features (n, D) of images, of at most so many."""
        some = data if most is None else chosen(data, min(most, len(data)), self.seed)
        return self.models.judge.features(some.all()[0])

    def _selection(self, model: Model) -> tuple[float, np.ndarray]:
        """FD to the clean training images, and features, of samples that judge nothing."""
        models, judge, count = self.models, self.models.judge, self.options.selection_samples
        seeds = seed_range("selection", self.seed, count)
        key = [model.hash, model.sampler.__dict__, judge.key, count, self.options.batch_size]
        file = self.models.run.artefact("selection", *key) / "features.npz"

        def work(item: Path) -> None:
            features = judge.features(models.samples(model, seeds)[0])
            with atomic_path(item) as temporary, open(temporary, "wb") as opened:
                np.savez(opened, fd=judge.frechet(features), features=features)

        self.models.run.spread([file], lambda item: item, work)
        with np.load(file) as archive:
            return float(archive["fd"]), archive["features"]

    def _pictures(self, level: float, pictures: dict[str, np.ndarray]) -> None:
        if self.models.run.is_main:
            file = self.task.file(level).with_suffix(".npz")
            with atomic_path(file) as temporary, open(temporary, "wb") as opened:
                np.savez_compressed(opened, **pictures)  # type: ignore[arg-type]


def _grids(run: Run, task: Task, train: Dataset) -> None:
    """The same seeds for every arm and level of the first repeat, as ``arm@level``; and real images."""
    arrays: dict[str, np.ndarray] = {}
    for level in task.options.levels:
        with np.load(task.file(level).with_suffix(".npz")) as archive:
            arrays |= {f"{name}@{level:g}": archive[name] for name in archive.files}
    count = len(next(iter(arrays.values())))
    arrays["real"] = train.codec.to_images(train.batch(np.random.default_rng(0).permutation(len(train))[:count])[0])
    with atomic_path(run.path / "grids.npz") as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
