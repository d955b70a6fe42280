"""Generations of models of images: each is trained on real data and on earlier generations' samples.

Every arm (standard training, sims, ...) is a chain of its own from the same seeds: in each generation a base is trained
on that chain's samples, the remedy is applied, the result is measured, and samples are drawn for the next generation.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from sims.config import JSON, convert, read_as
from sims.data.dataset import Dataset
from sims.data.mixture import REAL, accounting, chosen, mixture
from sims.data.store import Store
from sims.errors import UserError
from sims.experiments.data import open_judge, read_images, same_data
from sims.experiments.loop.loop_results import image_loop_result
from sims.experiments.loop.models import Generation, Models
from sims.experiments.loop.options import LoopOptions
from sims.experiments.loop.remedies import arm_of, arms_of, check_fits, is_searched
from sims.experiments.loop.repeats import (
    Opened,
    Repeat,
    check_jobs,
    folders_and_seeds,
    work_off,
    write_grids,
)
from sims.experiments.loop.schedule import Plan, fresh_positions, passed_on, schedule
from sims.files import write_arrays
from sims.model import load
from sims.processes import agree
from sims.results.common import Cost
from sims.results.loop import Arm, LoopResult, StrengthChoice, TrainedOn
from sims.results.summaries import to_json
from sims.runs.directory import Run
from sims.sampling import nfe
from sims.seeds import derive_seed


@dataclass(frozen=True)
class LoopRepeat(Repeat[LoopOptions]):
    """One repeat: its arms, and the number of generations after the first."""

    command: ClassVar[str] = LoopResult.experiment
    arms: tuple[Arm, ...]
    generations: int

    @property
    def key(self) -> JSON:
        return [self.seed, [[arm.name, arm.method, arm.w] for arm in self.arms]]

    @property
    def files(self) -> list[tuple[float, Path]]:
        return [(place, self.file(arm, place)) for arm in self.arms for place in range(self.generations + 1)]

    def file(self, arm: Arm, generation: int) -> Path:
        """What a finished generation of an arm leaves."""
        return self.path / "generations" / f"{arm.name}-{generation:03d}.json"

    def read(self, arm: Arm, generation: int) -> Generation:
        """A finished generation of an arm."""
        return read_as(self.file(arm, generation), Generation)

    def results(self) -> dict[str, list[Generation]]:
        """Every generation of every arm, by the arm's name."""
        return {arm.name: [self.read(arm, number) for number in range(self.generations + 1)] for arm in self.arms}

    def work(self, models: Models, train: Dataset) -> None:
        Chains(models, self, train).run()


def run_images(run: Run, options: LoopOptions) -> LoopResult:
    """Run or continue the loop on images in ``run``."""
    check_jobs(options.jobs, run.num_processes)
    train, test = read_images(run, options.data, options.seed)
    plan = schedule(options.kind, options.counts, options.generations, len(train))
    for folder in sorted(run.path.glob("repeats/*/generations")):
        check_stores(folder, plan)
    same_data(run, options.data.path, train, test)
    check_fits(options.remedies, train, options)
    judge = open_judge(run, train, test, options.evaluation)
    selection = _selection(run, options, (train, judge))
    arms = tuple(
        arm
        for name in options.remedies
        for arm in arms_of(name, (selection[name].w,) if name in selection else options.w)
    )
    repeats = [
        LoopRepeat(options, folder, seed, arms, options.generations) for folder, seed in folders_and_seeds(options)
    ]
    work_off(repeats, options.jobs, (train, judge))
    if run.is_main:
        write_grids(run, repeats[0], train)
    results = [repeat.results() for repeat in repeats]
    return image_loop_result(run, options, arms, results, selection, judge, (train, test))


class Chains:
    """The generations of all arms in one repeat."""

    def __init__(self, models: Models, repeat: LoopRepeat, train: Dataset) -> None:
        self.models, self.repeat, self.options = models, repeat, repeat.options
        options = repeat.options
        self.plan = schedule(options.kind, options.counts, options.generations, len(train))[: repeat.generations + 1]
        self.real = train if options.data.conditional else train.without_labels()

    def run(self) -> None:
        """All generations, one after the other, so that what they share is made once."""
        for generation in range(len(self.plan)):
            for arm in self.repeat.arms:
                if not agree(self.repeat.file(arm, generation).is_file()):
                    self._generation(arm, generation)
            self.models.forget()

    def data(self, arm: Arm, generation: int) -> Dataset:
        """The training set of a generation: the real samples that its counts name, and the arm's own earlier ones."""
        counts, seed = self.plan[generation], derive_seed("real", self.models.seed)
        parts = [(REAL, chosen(self.real, counts.real, seed))] if counts.real else []
        if counts.fresh:
            first = fresh_positions(self.plan, generation).start
            parts.append((REAL, chosen(self.real, counts.fresh, seed, first=first)))
        for origin, number in counts.synthetic.items():
            store = self.repeat.read(arm, origin).store
            assert store is not None
            parts.append((origin, chosen(Store.read(self.repeat.path / store), number, seed)))
        return mixture(parts, f"{self.repeat.folder} {arm.name} {generation}")

    def _generation(self, arm: Arm, generation: int) -> None:
        models, options, path = self.models, self.options, self.repeat.path
        data = self.data(arm, generation)
        start = None
        if options.start == "continued" and generation:
            start = load(path / self.repeat.read(arm, generation - 1).weights, models.run.device)
        base = models.base(data, generation, start)
        count = passed_on(self.plan, generation)
        improved = options.passed_on == "improved"
        made = models.made(arm, base, data, generation, count if improved else 0)
        measured = models.measure(made.model, generation, f"{arm.name}, generation {generation}")
        cost, store = made.cost, None
        if count:
            source, w = (made.model, arm.w) if improved else (base.model, 0.0)
            store = models.passed_on(source, arm.method, generation, count, w)
            cost += Cost(0, count * nfe(source, source.sampler))
        file = self.repeat.file(arm, generation)
        if models.run.is_main:
            write_arrays(file.with_suffix(".npz"), {arm.name: models.pictures(made.model)})
        entry = Generation(
            measured=measured,
            cost=cost,
            trained_on=trained_on(data, generation, self.plan[generation].fresh),
            base=base.key,
            weights=str(made.weights.relative_to(path)),
            store=None if store is None else str(store.relative_to(path)),
        )
        models.run.once(file, lambda: to_json(entry))
        both = (("train", "fd"), ("test", "fd_held_out"))
        shown = ", ".join(f"{name} {measured.figures[key]:.2f}" for name, key in both if key in measured.figures)
        models.run.log(f"{self.repeat.folder}: {arm.name}, generation {generation}: FD to {shown}")


def trained_on(data: Dataset, place: float, fresh: int = 0) -> TrainedOn:
    """What a mixture holds, ``fresh`` of its real samples for the first time."""
    synthetic = accounting(data)
    real = synthetic.pop("real", 0)
    return TrainedOn(place=place, real=real - fresh, fresh=fresh, synthetic=synthetic)


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
                Store.read(folder.parent / str(read_as(file, Generation).store))
            except UserError as error:
                reason = re.sub(r": run the command.*$", "", str(error))
                raise UserError(
                    f"the samples of generation {generation} ({name}) are not whole, {reason}: "
                    f"delete {file}, and the same command draws again what is missing"
                ) from None


def _selection(run: Run, options: LoopOptions, opened: Opened) -> dict[str, StrengthChoice]:
    """Strengths where none is given: the lowest FD to the training data after a short loop from a seed of its own."""
    remedies = [name for name in options.remedies if is_searched(name) and not options.w]
    if not remedies:
        return {}
    arms = {(name, w): arm_of(name, w, f"{name}@{w:g}") for name in remedies for w in options.strengths}
    generations = min(options.selection_generations, options.generations)
    seed = derive_seed("selection", options.seed)
    repeat = LoopRepeat(options, "selection", seed, tuple(arms.values()), generations)

    def choice(name: str) -> StrengthChoice:
        fd = {w: repeat.read(arms[name, w], generations).measured.figures["fd"] for w in options.strengths}
        w = min(sorted(fd), key=lambda w: fd[w])
        shown = {f"{w:g}": value for w, value in fd.items()}
        edge = len(fd) > 1 and w == max(fd)
        return StrengthChoice(w=w, distances=shown, generations=generations, at_edge=edge, replicas=1)

    work_off([repeat], 1, opened)
    entries = run.once(run.path / "selection.json", lambda: to_json({name: choice(name) for name in remedies}))
    choices: dict[str, StrengthChoice] = convert(entries, dict[str, StrengthChoice], "selection.json", what="entry")
    for name, strength in choices.items():
        run.log(f"{name}: w = {strength.w:g}, chosen after {generations} generations of a repeat that judges nothing")
    return choices
