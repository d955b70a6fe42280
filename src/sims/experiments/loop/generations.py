"""Generations of models of images: each is trained on real data and on earlier generations' samples.

Every arm (standard training, sims, ...) is a chain of its own from the same seeds: in each generation a base is trained
on that chain's samples, the remedy is applied, the result is measured, and samples are drawn for the next generation.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sims.data.dataset import Dataset
from sims.data.mixture import REAL, accounting, chosen, mixture
from sims.data.store import Store
from sims.errors import UserError
from sims.experiments.data import open_judge, read_images, same_data
from sims.experiments.loop.counts import Counts, fresh_positions, schedule
from sims.experiments.loop.models import Arm, Cost, Models
from sims.experiments.loop.options import LoopOptions, is_guided
from sims.experiments.loop.repeats import Opened, check_jobs, configuration, open_again, work_off
from sims.experiments.loop.summary import summarize
from sims.files import atomic_path, read_json, write_json
from sims.methods import METHODS, Continuous
from sims.model import load
from sims.processes import agree
from sims.runs.directory import Run
from sims.sampling import nfe
from sims.scoring.judge import Judge
from sims.seeds import derive_seed

Plan = tuple[Counts, ...]


@dataclass(frozen=True)
class Task:
    """One repeat: its folder below the run's, its seed, its arms, and the number of generations after the first."""

    options: LoopOptions
    folder: str
    seed: int
    arms: tuple[Arm, ...]
    generations: int

    @property
    def path(self) -> Path:
        return self.options.run / self.folder

    def file(self, arm: Arm, generation: int) -> Path:
        """What a finished generation of an arm leaves."""
        return self.path / "generations" / f"{arm.name}-{generation:03d}.json"

    def results(self) -> dict[str, list[dict[str, Any]]]:
        """What every generation of every arm left, by the arm's name."""
        span = range(self.generations + 1)
        return {arm.name: [read_json(self.file(arm, generation)) for generation in span] for arm in self.arms}

    @property
    def finished(self) -> bool:
        return all(
            self.file(arm, generation).is_file() for arm in self.arms for generation in range(self.generations + 1)
        )


def run_images(options: LoopOptions, run: Run) -> dict[str, Any]:
    """Run or continue the loop on images in ``run``; returns the summary that ``summary.json`` holds."""
    check_jobs(options.jobs, run.num_processes)
    train, test = read_images(run, options.data, options.seed)
    plan = schedule(options.kind, options.counts, options.generations, len(train))
    for folder in sorted(run.path.glob("repeats/*/generations")):
        check_stores(folder, plan)
    same_data(run, {"train": train.fingerprint, "test": test.fingerprint}, options.data.path)
    judge = open_judge(run, train, test, options.evaluation)
    opened = (train, judge)
    arms, selection = _arms(options, run, opened)
    tasks = [
        Task(options, f"repeats/{index:02d}", derive_seed("repeat", options.seed, index), arms, options.generations)
        for index in range(options.repeats)
    ]
    work_off(repeat, tasks, options.jobs, opened)
    results = [task.results() for task in tasks]
    summary = summarize(run, options, judge, arms, plan, results, selection, (train, test))
    if run.is_main:
        _grids(run, tasks[0], train, judge)
        write_json(run.path / "summary.json", summary)
    run.barrier()
    return summary


def repeat(task: Task, opened: Opened | None = None) -> None:
    """One repeat, run or continued; ``opened`` are the data and the judge, where this process has them."""
    options = task.options
    run = Run(task.path, configuration(options, task=[task.seed, [vars(arm) for arm in task.arms]]))
    try:
        train, judge = opened or open_again(options, options.run / "references", run.device)
        plan = schedule(options.kind, options.counts, options.generations, len(train))[: task.generations + 1]
        real = train if options.data.conditional else train.without_labels()
        Chains(Models(run, options, judge, task.seed), task, plan, real).run()
    finally:
        run.close()


class Chains:
    """The generations of all arms in one repeat."""

    def __init__(self, models: Models, task: Task, plan: Plan, real: Dataset) -> None:
        self.models, self.task, self.plan, self.real = models, task, plan, real
        self.options, self.log = task.options, models.run.log

    def run(self) -> None:
        """All generations, one after the other, so that what they share is made once."""
        for generation in range(len(self.plan)):
            for arm in self.task.arms:
                if not agree(self.task.file(arm, generation).is_file()):
                    self._generation(arm, generation)
            self.models.forget()

    def _before(self, arm: Arm, generation: int) -> dict[str, Any]:
        return read_json(self.task.file(arm, generation))

    def data(self, arm: Arm, generation: int) -> Dataset:
        """The training set of a generation: the real samples that its counts name, and the arm's own earlier ones."""
        counts, seed = self.plan[generation], derive_seed("real", self.models.seed)
        parts = [(REAL, chosen(self.real, counts.real, seed))] if counts.real else []
        if counts.fresh:
            first = fresh_positions(self.plan, generation).start
            parts.append((REAL, chosen(self.real, counts.fresh, seed, first=first)))
        for origin, number in counts.synthetic.items():
            store = Store.read(self.models.run.path / self._before(arm, origin)["store"])
            parts.append((origin, chosen(store, number, seed)))
        return mixture(parts, f"{self.task.folder} {arm.name} {generation}")

    def _generation(self, arm: Arm, generation: int) -> None:
        models, options, path = self.models, self.options, self.models.run.path
        data = self.data(arm, generation)
        start = None
        if options.start == "continued" and generation:
            start = load(path / self._before(arm, generation - 1)["weights"], models.run.device)
        base = models.base(data, generation, start)
        count = self._passed_on(generation)
        improved = options.passed_on == "improved"
        made = models.made(arm, base, data, generation, count if improved else 0)
        found = models.measure(made.model, generation, f"{arm.name}, generation {generation}")
        cost, store = made.cost, None
        if count:
            source, w = (made.model, arm.w) if improved else (base.model, 0.0)
            store = models.passed_on(source, arm, generation, count, w)
            cost += Cost(0, count * nfe(source, source.sampler))
        self._pictures(arm, generation, models.pictures(made.model))
        entry = {
            **found,
            "generation": generation,
            "w": arm.w,
            "cost": cost.to_json(),
            "accounting": accounting(data),
            "base": base.key,
            "weights": str(made.weights.relative_to(path)),
            "store": store and str(store.relative_to(path)),
        }
        models.run.once(self.task.file(arm, generation), lambda: entry)
        figures = found["figures"]
        both = (("train", "fd"), ("test", "fd_held_out"))
        shown = ", ".join(f"{name} {figures[key]:.2f}" for name, key in both if key in figures)
        self.log(f"{self.task.folder}: {arm.name}, generation {generation}: FD to {shown}")

    def _passed_on(self, generation: int) -> int:
        """Samples of a generation that any later one is trained on."""
        return max((counts.synthetic.get(generation, 0) for counts in self.plan), default=0)

    def _pictures(self, arm: Arm, generation: int, pictures: np.ndarray) -> None:
        file = self.task.file(arm, generation).with_suffix(".npz")
        if self.models.run.is_main:
            with atomic_path(file) as temporary, open(temporary, "wb") as opened:
                np.savez_compressed(opened, pictures=pictures)


def check_stores(folder: Path, plan: Plan) -> None:
    """UserError if the samples of a finished generation, which a later one still needs, are not whole."""
    done: dict[str, list[int]] = {}
    for file in sorted(folder.glob("*.json")):
        name, _, number = file.stem.rpartition("-")
        done.setdefault(name, []).append(int(number))
    for name, numbers in done.items():
        rest = [counts for generation, counts in enumerate(plan) if generation not in numbers]
        for generation in sorted({g for counts in rest for g in counts.synthetic} & {*numbers}):
            file = folder / f"{name}-{generation:03d}.json"
            try:
                Store.read(folder.parent / read_json(file)["store"])
            except UserError as error:
                reason = re.sub(r": run the command.*$", "", str(error))
                raise UserError(
                    f"the samples of generation {generation} ({name}) are not whole, {reason}: "
                    f"delete {file}, and the same command draws again what is missing"
                ) from None


def _arms(options: LoopOptions, run: Run, opened: Opened) -> tuple[tuple[Arm, ...], dict[str, Any] | None]:
    """The arms of the comparison, and how their strengths were chosen where none was given."""
    searched = [name for name in options.remedies if is_guided(name) and not options.w and is_continuous(name)]
    found: dict[str, Any] | None = None
    if searched:
        found = _selection(options, run, searched, opened)
    arms: list[Arm] = []
    for name in options.remedies:
        if name in searched:
            assert found is not None
            arms.append(Arm(name, name, found["chosen"][name]))
        else:
            arms += arms_of(name, options.w)
    return tuple(arms), found


def is_continuous(remedy: str) -> bool:
    """Whether a guided remedy has a strength to choose."""
    return isinstance(METHODS[remedy].strengths, Continuous)


def arms_of(remedy: str, strengths: tuple[float, ...]) -> list[Arm]:
    """A remedy at each of some strengths; at its one strength, or none, where it has no choice."""
    if not is_guided(remedy):
        return [Arm(remedy, remedy)]
    fixed = METHODS[remedy].strengths
    if not isinstance(fixed, Continuous):
        return [Arm(remedy, remedy, fixed.w)]
    return [Arm(remedy if len(strengths) == 1 else f"{remedy}@{w:g}", remedy, w) for w in strengths]


def _selection(options: LoopOptions, run: Run, remedies: list[str], opened: Opened) -> dict[str, Any]:
    """Each remedy's strength: the lowest FD to the training data after a short loop from a seed that judges nothing."""
    arms = [Arm(f"{name}@{w:g}", name, w) for name in remedies for w in options.strengths]
    generations = min(options.selection_generations, options.generations)
    task = Task(options, "selection", derive_seed("selection", options.seed), tuple(arms), generations)

    def choose() -> dict[str, Any]:
        results = task.results()
        table = {
            name: {f"{arm.w:g}": results[arm.name][-1]["figures"]["fd"] for arm in arms if arm.remedy == name}
            for name in remedies
        }
        best = {name: min((fd, float(w)) for w, fd in row.items())[1] for name, row in table.items()}
        edge = {name: w == max(options.strengths) for name, w in best.items()}
        return {"chosen": best, "fd": table, "generations": generations, "at_edge": edge}

    work_off(repeat, [task], 1, opened)
    found: dict[str, Any] = run.once(run.path / "selection.json", choose)
    for name, w in found["chosen"].items():
        run.log(f"{name}: w = {w:g}, chosen after {generations} generations of a repeat that judges nothing")
    return found


def _grids(run: Run, task: Task, train: Dataset, judge: Judge) -> None:
    """The same seeds for every arm and generation of the first repeat, as ``arm@generation``; and real images."""
    arrays: dict[str, np.ndarray] = {}
    for arm in task.arms:
        for generation in range(task.generations + 1):
            with np.load(task.file(arm, generation).with_suffix(".npz")) as archive:
                arrays[f"{arm.name}@{generation}"] = archive["pictures"]
    count = len(next(iter(arrays.values())))
    some = np.random.default_rng(0).permutation(len(train))[:count]
    arrays["real"] = train.codec.to_images(train.batch(some)[0])
    with atomic_path(run.path / "grids.npz") as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
