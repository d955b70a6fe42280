"""Loops of points in two dimensions: many replicas at once, so that every curve has a confidence band."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from sims.errors import UserError
from sims.experiments.facts import reproduction
from sims.experiments.loop.options import LoopOptions
from sims.experiments.loop.remedies import EQUAL, arms_of, is_guided, is_searched, looks_of
from sims.experiments.loop.repeats import check_jobs, in_processes
from sims.experiments.loop.replica_group import PointGeneration, ReplicaGroup
from sims.experiments.loop.schedule import schedule
from sims.experiments.loop.toys import POINT_FIGURES, TOYS, Ruler
from sims.experiments.loop.verdicts import choose_strength, conclusion, verdicts_on
from sims.files import write_arrays
from sims.methods import METHODS
from sims.methods.neon import NEON
from sims.methods.sims import SIMS
from sims.results.common import Data, Floor
from sims.results.loop import Arm, Curves, LoopResult, StrengthChoice
from sims.runs.directory import Run

GROUP = 20  # replicas computed as one network: 5.6 times as fast as one after another; 10 are 4.8 times as fast
SELECTION = 1_000_000  # number of the first replica that strengths are chosen by: none that is judged has such a number


def run_points(run: Run, options: LoopOptions) -> LoopResult:
    """Run or continue a loop of points in ``run``.

    Where several strengths are given, the first half of the replicas chooses among them and the others are judged.
    """
    check_points(options, run.num_processes)
    arms, selection = _arms(run, options)
    groups = _groups(run, options, run.path / "generations", arms, range(options.repeats), options.generations)
    entries = _computed(run, options, groups)
    curves, judged = _curves(entries), range(options.repeats)
    guided = {arm.method for arm in arms if is_guided(arm.method)}
    if any(sum(arm.method == remedy for arm in arms) > 1 for remedy in guided) and options.repeats >= 4:
        half = range(options.repeats // 2)
        selection = {remedy: _choice(curves, options, arms, remedy, half) for remedy in sorted(guided)}
        judged = range(len(half), options.repeats)
    _pictures(run, groups[0])
    return _result(options, groups[0], entries, curves, selection, judged)


def check_points(options: LoopOptions, num_processes: int = 1) -> None:
    """UserError for what a loop of points does not know, before anything is computed."""
    check_jobs(options.jobs, num_processes)
    if num_processes > 1:
        raise UserError(f"a loop of points under {num_processes} processes of torchrun: use jobs instead")
    schedule(options.kind, options.counts, options.generations)
    for name in options.remedies:
        if is_guided(name) and (METHODS[name].prepared_as != SIMS.prepared_as or METHODS[name].fits is not None):
            raise UserError(f"remedy {name!r} is for images: a loop of points knows {EQUAL}, sims and neon")
        if options.affine and name == NEON.name:
            raise UserError(f"remedy {name!r} extrapolates weights, and an affine denoiser has none: leave it out")
    if options.auxiliary.init == "snapshot":
        raise UserError("auxiliary.init = 'snapshot' is for images: a loop of points knows base and scratch")
    if options.auxiliary.synthesis != "full":
        raise UserError("auxiliary.synthesis = 'truncated' is for images: a loop of points knows full")
    if options.sampler.s_churn:
        raise UserError(
            f"sampler.s_churn is {options.sampler.s_churn:g}: points are sampled without churn, set it to 0"
        )
    if options.network.dropout or options.base.train.xflip or options.base.train.augment:
        raise UserError("network.dropout, base.train.xflip and base.train.augment are for images: leave them out")


def _arms(run: Run, options: LoopOptions) -> tuple[tuple[Arm, ...], dict[str, StrengthChoice]]:
    """The arms, and how their strengths were chosen where none is given."""
    searched = [name for name in options.remedies if is_searched(name) and not options.w]
    selection: dict[str, StrengthChoice] = {}
    if searched:
        generations = min(options.selection_generations, options.generations)
        every = tuple(arm for name in searched for arm in arms_of(name, options.strengths))
        replicas = range(SELECTION, SELECTION + GROUP)
        groups = _groups(run, options, run.path / "selection", every, replicas, generations)
        curves = _curves(_computed(run, options, groups))
        selection = {name: _choice(curves, options, every, name, range(GROUP)) for name in searched}
    strengths = {name: (choice.w,) for name, choice in selection.items()}
    # An affine denoiser is fitted and not trained: there is no compute that standard training could be given.
    names = [name for name in options.remedies if not (name == EQUAL and options.affine)]
    return tuple(arm for name in names for arm in arms_of(name, strengths.get(name, options.w))), selection


def _choice(
    curves: Curves, options: LoopOptions, arms: Sequence[Arm], remedy: str, replicas: Sequence[int]
) -> StrengthChoice:
    """The strength of a remedy that some of the replicas choose."""
    distances = curves[TOYS[options.data.path]().distance]
    candidates = {arm.w: np.array(distances[arm.name]).T for arm in arms if arm.method == remedy}
    w = choose_strength(candidates, replicas)
    return StrengthChoice(
        w=w,
        distances={f"{key:g}": float(curve[list(replicas), -1].mean()) for key, curve in sorted(candidates.items())},
        generations=len(distances[arms[0].name]) - 1,
        at_edge=len(candidates) > 1 and w == max(candidates),
        replicas=len(replicas),
    )


def _groups(
    run: Run, options: LoopOptions, folder: Path, arms: tuple[Arm, ...], replicas: range, generations: int
) -> list[ReplicaGroup]:
    """The replicas in groups of a fixed size, so that a longer run finds those of a shorter one."""
    device = "cpu" if options.affine else str(run.device)
    parts = [tuple(replicas[first : first + GROUP]) for first in range(0, len(replicas), GROUP)]
    return [
        ReplicaGroup(options, folder / f"replicas-{part[0]:03d}-{part[-1]:03d}", arms, part, generations, device)
        for part in parts
    ]


def _computed(run: Run, options: LoopOptions, groups: Sequence[ReplicaGroup]) -> list[list[PointGeneration]]:
    """The generations of every group, computed or read."""
    if options.jobs > 1 and len(groups) > 1:
        in_processes(groups, min(options.jobs, len(groups)))
    with run.progress("generations", len(groups) * (groups[0].generations + 1)) as advance:
        return [group.run(advance) for group in groups]


def _curves(groups: Sequence[Sequence[PointGeneration]]) -> Curves:
    """The figures of several groups as curves of all replicas."""
    first = groups[0][0].figures
    return {
        figure: {
            arm: [[value for entry in row for value in entry.figures[arm][figure]] for row in zip(*groups)]
            for arm in first
        }
        for figure in next(iter(first.values()))
    }


def _result(
    options: LoopOptions,
    group: ReplicaGroup,
    entries: Sequence[Sequence[PointGeneration]],
    curves: Curves,
    selection: dict[str, StrengthChoice],
    judged: range,
) -> LoopResult:
    toy, plan = group.toy, group.plan
    kept = {
        arm: [[values[index] for index in judged] for values in curve] for arm, curve in curves[toy.distance].items()
    }
    diverged = {arm.name: sum(one.diverged[arm.name] for rows in entries for one in rows) for arm in group.arms}
    shown = [arm for arm in group.arms if arm.method not in selection or selection[arm.method].w == arm.w]
    verdicts = verdicts_on(kept, group.arms)
    return LoopResult(
        title=f"{options.generations} generations of a 2-D {toy.name} ({options.kind})",
        headline=conclusion(kept, shown, verdicts, "distance to the truth", 3),
        data=Data(name=toy.name, num_train=plan[0].real, shape=(2,)),
        floor=Floor(
            {toy.distance: Ruler(toy).floor(options.evaluation.samples)},
            f"what {options.evaluation.samples:,} exact samples have",
        ),
        looks=looks_of(options.remedies),
        figures={name: facts for name, facts in POINT_FIGURES.items() if name in curves},
        reproduction=reproduction(options),
        kind=options.kind,
        generations=options.generations,
        repeats=options.repeats,
        passed_on=options.passed_on,
        start=options.start,
        denoiser="affine" if options.affine else "network",
        arms=tuple(
            replace(arm, cost=group.cost(arm) * len(plan), nfe=group.evaluations(arm), diverged=diverged[arm.name])
            for arm in group.arms
        ),
        curves=curves,
        trained_on=tuple(counts.trained_on(generation) for generation, counts in enumerate(plan)),
        selection=selection,
        verdicts=verdicts,
        judged=tuple(judged),
    )


def _pictures(run: Run, group: ReplicaGroup) -> None:
    """``grids.npz``: the first replica's samples of every arm in some generations, and exact ones."""
    arrays = {"truth": group.toy.draw(1_000, "pictures").numpy()}
    for generation in sorted({round(group.generations * share / 5) for share in range(6)}):
        with np.load(group.folder / f"{generation:03d}" / "points.npz") as points:
            arrays |= {f"{arm.name}@{generation}": points[arm.name][:1_000, 0] for arm in group.arms}
    write_arrays(run.path / "grids.npz", arrays)
