"""Loops of points in two dimensions: many replicas at once, so that every curve has a confidence band."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sims.config import to_dict, to_toml
from sims.errors import UserError
from sims.experiments.loop.counts import schedule
from sims.experiments.loop.generations import arms_of, is_continuous
from sims.experiments.loop.models import Arm
from sims.experiments.loop.options import EQUAL, STANDARD, STEPS, LoopOptions, is_guided
from sims.experiments.loop.repeats import check_jobs, in_processes
from sims.experiments.loop.replica_group import Piece, Task
from sims.experiments.loop.summary import judged, label
from sims.experiments.loop.toys import TOYS, Ruler
from sims.experiments.loop.verdicts import choose_strength
from sims.files import atomic_path, write_json
from sims.methods import METHODS
from sims.methods.auxiliary import prepare_auxiliary
from sims.runs.directory import Run, command_line

PIECE = 20  # replicas computed as one network: 5.6 times as fast as one after another; 10 are 4.8 times as fast
SELECTION = 1_000_000  # number of the first replica that strengths are chosen by: none that is judged has such a number
Curves = dict[str, dict[str, list[list[float]]]]  # figure -> arm -> generation -> one value per replica


def run_replicas(options: LoopOptions, run: Run) -> dict[str, Any]:
    """Run or continue a loop of points in ``run``; returns the summary that ``summary.json`` holds.

    Where several strengths are given, the first half of the replicas chooses among them and the others are judged.
    """
    check_points(options, run.num_processes)
    arms, selection = _arms(options, run)
    curves = _computed(options, run, run.path / "generations", arms, range(options.repeats), options.generations)
    judged_by = range(options.repeats)
    guided = {arm.remedy for arm in arms if is_guided(arm.remedy)}
    if any(sum(arm.remedy == remedy for arm in arms) > 1 for remedy in guided) and options.repeats >= 4:
        half = range(options.repeats // 2)
        selection = {remedy: _choice(curves, options, arms, remedy, half) for remedy in sorted(guided)}
        judged_by = range(len(half), options.repeats)
    summary = _summary(options, arms, curves, selection, judged_by)
    _pictures(options, run, arms)
    write_json(run.path / "summary.json", summary)
    return summary


def check_points(options: LoopOptions, num_processes: int = 1) -> None:
    """UserError for what a loop of points does not know, before anything is computed."""
    check_jobs(options.jobs, num_processes)
    if num_processes > 1:
        raise UserError(f"a loop of points under {num_processes} processes of torchrun: use --jobs instead")
    schedule(options.kind, options.counts, options.generations)
    for name in options.remedies:
        if is_guided(name) and METHODS[name].preparation is not prepare_auxiliary:
            raise UserError(f"remedy {name!r} is for images: a loop of points knows standard-equal, sims and neon")
        if options.affine and name == "neon":
            raise UserError("remedy 'neon' extrapolates weights, and an affine denoiser has none: leave it out")
    if options.auxiliary.init == "snapshot":
        raise UserError("auxiliary.init = 'snapshot' is for images: a loop of points knows base and scratch")
    if options.sampler.s_churn:
        raise UserError(
            f"sampler.s_churn is {options.sampler.s_churn:g}: points are sampled without churn, set it to 0"
        )
    if options.network.dropout or options.base.train.xflip or options.base.train.augment:
        raise UserError("network.dropout, base.train.xflip and base.train.augment are for images: leave them out")


def _arms(options: LoopOptions, run: Run) -> tuple[tuple[Arm, ...], dict[str, Any]]:
    """The arms, and how their strengths were chosen where none is given."""
    searched = [name for name in options.remedies if is_guided(name) and is_continuous(name) and not options.w]
    selection: dict[str, Any] = {}
    if searched:
        generations = min(options.selection_generations, options.generations)
        every = tuple(arm for name in searched for arm in arms_of(name, options.strengths))
        replicas = range(SELECTION, SELECTION + PIECE)
        curves = _computed(options, run, run.path / "selection", every, replicas, generations)
        selection = {name: _choice(curves, options, every, name, range(PIECE)) for name in searched}
    strengths = {name: (found["w"],) for name, found in selection.items()}
    # An affine denoiser is fitted and not trained: there is no compute that standard training could be given.
    names = [name for name in options.remedies if not (name == EQUAL and options.affine)]
    return tuple(arm for name in names for arm in arms_of(name, strengths.get(name, options.w))), selection


def _choice(
    curves: Curves, options: LoopOptions, arms: Sequence[Arm], remedy: str, replicas: Sequence[int]
) -> dict[str, Any]:
    """The strength of a remedy that some of the replicas choose."""
    distances = curves[TOYS[options.data.path]().distance]
    candidates = {arm.w: np.array(distances[arm.name]).T for arm in arms if arm.remedy == remedy}
    w = choose_strength(candidates, replicas)
    last = {f"{key:g}": float(curve[list(replicas), -1].mean()) for key, curve in sorted(candidates.items())}
    return {"w": w, "replicas": len(replicas), "generations": len(distances[arms[0].name]) - 1, "distance": last}


def _tasks(
    options: LoopOptions, folder: Path, arms: tuple[Arm, ...], replicas: range, generations: int, device: str
) -> list[Task]:
    """The replicas in groups of a fixed size, so that a longer run finds those of a shorter one."""
    groups = [tuple(replicas[first : first + PIECE]) for first in range(0, len(replicas), PIECE)]
    return [
        Task(options, folder / f"replicas-{group[0]:03d}-{group[-1]:03d}", arms, group, generations, device)
        for group in groups
    ]


def _computed(
    options: LoopOptions, run: Run, folder: Path, arms: tuple[Arm, ...], replicas: range, generations: int
) -> Curves:
    """Every figure of every arm, generation and replica, computed or found."""
    device = "cpu" if options.affine else str(run.device)
    tasks = _tasks(options, folder, arms, replicas, generations, device)
    if options.jobs > 1 and len(tasks) > 1:
        in_processes(_work, tasks, min(options.jobs, len(tasks)))
    with run.progress("generations", len(tasks) * (generations + 1)) as advance:
        rows = [Piece(task).run(advance) for task in tasks]
    return joined([[row["figures"] for row in piece] for piece in rows])


def _work(task: Task) -> None:
    Piece(task).run()


def joined(pieces: Sequence[Sequence[dict[str, dict[str, list[float]]]]]) -> Curves:
    """The figures of several pieces (piece -> generation -> arm -> figure -> values) as curves of all replicas."""
    first = pieces[0][0]
    return {
        figure: {
            arm: [
                [value for piece in pieces for value in piece[generation][arm][figure]]
                for generation in range(len(pieces[0]))
            ]
            for arm in first
        }
        for figure in next(iter(first.values()))
    }


def _summary(
    options: LoopOptions, arms: tuple[Arm, ...], curves: Curves, selection: dict[str, Any], judged_by: range
) -> dict[str, Any]:
    toy = TOYS[options.data.path]()
    plan = schedule(options.kind, options.counts, options.generations)
    kept = {
        arm: [[values[index] for index in judged_by] for values in curve] for arm, curve in curves[toy.distance].items()
    }
    verdicts, _ = judged(kept, arms)
    conclusion = _conclusion(kept, arms, verdicts, selection)
    piece = Piece(_tasks(options, Path(), arms, range(options.repeats), options.generations, "cpu")[0])
    return {
        "format": 1,
        "experiment": "loop",
        "title": f"{options.generations} generations of a 2-D {toy.name} ({options.kind})",
        "headline": conclusion,
        "data": {"name": toy.name, "num_train": plan[0].real, "shape": [2]},
        "kind": options.kind,
        "generations": options.generations,
        "repeats": options.repeats,
        "passed_on": options.passed_on,
        "start": options.start,
        "denoiser": "affine" if options.affine else "network",
        "arms": [_arm(arm, piece, options.generations) for arm in arms],
        "curves": curves,
        "floor": {toy.distance: Ruler(toy).floor(options.evaluation.samples)},
        "accounting": [
            {
                "generation": generation,
                "arm": "all",
                "real": counts.real,
                "fresh": counts.fresh,
                "synthetic": sum(counts.synthetic.values()),
                "from": {str(earlier): count for earlier, count in counts.synthetic.items()},
            }
            for generation, counts in enumerate(plan)
        ],
        "selection": selection,
        "judged": [judged_by.start, judged_by.stop],
        "verdicts": verdicts,
        "conclusion": conclusion,
        "commands": [command_line()],
        "config_toml": to_toml(to_dict(options)),
        "versions": {
            "sims": version("sims-diffusion"),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "rows": [],
    }


def _arm(arm: Arm, piece: Piece, generations: int) -> dict[str, Any]:
    once, times = piece.cost(arm), generations + 1
    total = replace(once, images=once.images * times, evaluations=once.evaluations * times)
    cost = {**total.to_json(), "nfe": piece.evaluations(arm)}
    return {"name": arm.name, "label": label(arm), "method": arm.method, "remedy": arm.remedy, "w": arm.w, "cost": cost}


def _conclusion(
    kept: dict[str, list[list[float]]], arms: Sequence[Arm], verdicts: dict[str, Any], selection: dict[str, Any]
) -> str:
    """Plain sentences: what became of standard training, and what each remedy prevented."""
    if not verdicts:
        return "One replica gives no intervals, and so no verdicts: run the same command with a higher --repeats."
    last = len(kept[STANDARD]) - 1

    def ends(name: str) -> str:
        return f"{np.mean(kept[name][0]):.3f} -> {np.mean(kept[name][-1]):.3f}"

    mad = verdicts[STANDARD]["mad"]
    fate = "collapses" if mad and mad["holds"] else "does not significantly collapse"
    text = f"Over {last} generations standard training {fate} (distance to the truth {ends(STANDARD)})."
    if STEPS in kept:
        text += f" Sampled with twice the steps: {ends(STEPS)}."
    for arm in arms:
        if not is_guided(arm.remedy) or selection.get(arm.remedy, {}).get("w", arm.w) != arm.w:
            continue
        weak, strong = verdicts[arm.name]["weak"], verdicts[arm.name]["strong"]
        kind = "prevents it, in the strong sense" if strong["holds"] else "slows it down" if weak["holds"] else "fails"
        text += f" {label(arm)}: {kind} ({ends(arm.name)})."
    return text


def _pictures(options: LoopOptions, run: Run, arms: Sequence[Arm]) -> None:
    """``grids.npz``: the first replica's samples of every arm in some generations, and exact ones."""
    generations = sorted({round(options.generations * share / 5) for share in range(6)})
    folder = run.path / "generations"
    first = _tasks(options, folder, tuple(arms), range(options.repeats), options.generations, "cpu")[0]
    arrays = {"truth": TOYS[options.data.path]().draw(1_000, "pictures").numpy()}
    for generation in generations:
        with np.load(first.folder / f"{generation:03d}" / "points.npz") as points:
            arrays |= {f"{arm.name}@{generation}": points[arm.name][:1_000, 0] for arm in arms}
    with atomic_path(run.path / "grids.npz") as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
