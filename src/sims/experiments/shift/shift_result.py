"""What distribution control leaves: one table, its figures, pictures, and what was found in words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from sims.config import JSON
from sims.experiments.facts import GRID, data_facts, reproduction
from sims.experiments.shift.attributes import Classifier
from sims.experiments.shift.contenders import LOOKS, Judged, ratio_within
from sims.experiments.shift.measuring import FIGURES, TRAIN, Meter, tv_of
from sims.experiments.shift.options import ShiftOptions
from sims.experiments.shift.problem import Problem
from sims.files import write_arrays
from sims.methods import BASE, DISTILLED
from sims.model import Model
from sims.results.common import Figure
from sims.results.shift import (
    REJECTION,
    STEERED,
    ClassifierFacts,
    Group,
    Rejection,
    Saving,
    ShiftResult,
    ShiftRow,
    SolverResult,
)
from sims.runs.clock import Clock
from sims.runs.directory import Run
from sims.runs.measure import rounded
from sims.seeds import seed_range

GROUP = 8  # and of every group, out of
SHOWN = 256


def rows_of(meter: Meter, table: Sequence[Judged]) -> tuple[ShiftRow, ...]:
    """The table. Groups are compared at equal numbers: as many as the base or the steered model has fewer.

    Fréchet distances of few samples are biased upwards, so that unequal numbers could not be compared.
    """
    compared = [judged.seen.judged for judged in table if judged.label in (BASE.name, STEERED)]
    limits = [max(2, min(int((each == value).sum()) for each in compared)) for value in range(len(meter.names))]
    rows = []
    for judged in table:
        contender, seen = judged.contender, judged.seen
        row = ShiftRow(
            label=contender.label,
            method=contender.label,
            w=contender.w,
            nfe=contender.nfe,
            cost=contender.cost,
            figures={name: Figure.of([found[name] for found in judged.distances]) for name in judged.distances[0]},
            draws=len(judged.draws),
            samples_per_draw=len(judged.draws[0]),
            diverged=seen.diverged,
            note=contender.note,
            n=len(seen),
            proportions=meter.shares(seen.judged, judged=True),
            steering=meter.shares(seen.steering, judged=False),
            drawn=judged.drawn,
            groups=tuple(meter.group(seen, value, limit) for value, limit in enumerate(limits)),
        )
        rows.append(row)
    return tuple(rows)


def savings_of(rows: Sequence[ShiftRow], base_shares: np.ndarray, target: np.ndarray) -> tuple[Saving, ...]:
    """Cost per delivered sample against rejection, exact and at the row's own error, and the break-even numbers.

    ``base_shares`` (K,) are the base's proportions. At a total variation t, rejection may leave that much undone
    (``ratio_within``). Break-even: the number of samples from which on a row costs less than rejection, its making
    included; None where it never does. The first row is the base's.
    """

    def against(row: ShiftRow, allowed: float) -> Rejection:
        nfe = rows[0].nfe * ratio_within(target, base_shares, allowed)
        if not math.isfinite(nfe):
            return Rejection(nfe=None, times=None, break_even=None)
        saved = nfe - row.nfe
        return Rejection(
            nfe=nfe, times=nfe / row.nfe, break_even=math.ceil(row.cost.total / saved) if saved > 0 else None
        )

    return tuple(
        Saving(
            label=row.label,
            nfe=row.nfe,
            cost=row.cost,
            tv=row.proportions.tv.value,
            rejection=against(row, 0.0),
            rejection_at_equal_error=against(row, tv_of(row.proportions)),
        )
        for row in rows
        if row.label not in (BASE.name, REJECTION)
    )


def worse_groups(base: Sequence[Group], steered: Sequence[Group], most: int) -> list[str]:
    """Groups in which the steered model's quality is below the base's, in words.

    Precision and recall are shares, of ``most`` samples and real images at most: a fall counts from two standard errors
    on.
    """
    texts = []
    for before, after in zip(base, steered):
        parts = []
        if before.fd is not None and after.fd is not None and after.fd > before.fd:
            parts.append(f"FD {before.fd:.2f} -> {after.fd:.2f}")
        for name, p, q, count in (
            ("precision", before.precision, after.precision, before.n),
            ("recall", before.recall, after.recall, before.real),
        ):
            n = min(count, most)
            if p is not None and q is not None and p - q > 2 * math.sqrt((p * (1 - p) + q * (1 - q)) / n):
                parts.append(f"{name} {p:.2f} -> {q:.2f}")
        if parts:
            counts = f"{before.n:,} samples each, {before.real:,} real images"
            texts.append(f"{before.value!r}: {', '.join(parts)} ({counts})")
    return texts


def disagreement(steered: ShiftRow, names: Sequence[str]) -> list[str]:
    """Values whose share the two classifiers see differently, beyond the intervals of both, among steered samples.

    Their errors were measured on real images; on generated ones they can have others.
    """
    judged, steering = steered.proportions, steered.steering
    apart = [
        f"{name!r} {steering.values[k]:.1%} and {judged.values[k]:.1%}"
        for k, name in enumerate(names)
        if steering.low[k] > judged.high[k] or steering.high[k] < judged.low[k]
    ]
    text = f"the steering and the judging classifier disagree on steered samples: {', '.join(apart)}"
    return [text] if apart else []


def _headline(base: ShiftRow, steered: ShiftRow, met: bool) -> str:
    """What was reached, by the judge, on the evaluation seeds."""
    tv, before = steered.proportions.tv, tv_of(base.proportions)
    fd = f"{base.figures[TRAIN].mean:.2f} -> {steered.figures[TRAIN].mean:.2f}"
    bad = f" ({steered.diverged:,} of the steered samples diverged)" if steered.diverged else ""
    return (
        f"target {'' if met else 'not '}met on the selection seeds; by the judge, n = {steered.n:,}: total variation "
        f"{before:.3f} -> {tv.value:.3f} [{tv.low:.3f}, {tv.high:.3f}], FD to real data in the target's proportions "
        f"{fd}{bad}"
    )


def summarized(
    run: Run,
    options: ShiftOptions,
    problem: Problem,
    meter: Meter,
    solver: SolverResult,
    table: Sequence[Judged],
    scales: dict[str, float],
    improved: str,
    clock: Clock,
) -> ShiftResult:
    """Everything that ``summary.json`` holds."""
    rows = rows_of(meter, table)
    base, steered = rows[0], next(row for row in rows if row.label == STEERED)
    most = meter.judge.manifold_samples
    warnings = [] if solver.met else [f"the target was not met: {solver.reason}"]
    warnings += [f"worse than the base within {text}" for text in worse_groups(base.groups, steered.groups, most)]
    warnings += disagreement(steered, meter.names)
    real = np.bincount(problem.train_labels[problem.train_labels >= 0], minlength=len(meter.names))
    measured = {"tv", "kl", *meter.references}
    return ShiftResult(
        title=f"{options.data.path if options.model is None else options.model.name}: proportions to a target",
        headline=_headline(base, steered, solver.met),
        warnings=tuple(warnings),
        data=replace(
            data_facts(problem.train, problem.test, problem.base_data.labels is not None),
            num_base_train=len(problem.base_data) if options.model is None else None,
            imbalance=options.imbalance,
        ),
        extractor=meter.judge.about(),
        second_extractor=meter.judge.about_second(),
        looks={row.label: LOOKS[row.label] for row in rows},
        figures={name: facts for name, facts in FIGURES.items() if name in measured},
        reproduction=reproduction(options, clock),
        attribute=meter.steering.attribute.name,
        values=meter.names,
        target=tuple(meter.target.tolist()),
        real_counts=tuple(real.tolist()),
        classifiers={"steering": _facts(meter.steering), "judging": _facts(meter.judging)},
        solver=solver,
        rows=rows,
        savings=savings_of(rows, np.asarray(solver.base.values), meter.target),
        scales=scales,
        improved=improved,
        distilled=DISTILLED.name if options.distilled.samples else "",
    )


def _facts(classifier: Classifier) -> ClassifierFacts:
    confusion = np.asarray(classifier.confusion, np.float64).tolist()
    return ClassifierFacts(hash=classifier.hash, accuracy=classifier.accuracy, confusion=confusion)


def write_outputs(run: Run, options: ShiftOptions, meter: Meter, base: Model, table: Sequence[Judged]) -> None:
    """``metrics.jsonl`` and ``grids.npz``: "LABEL" are 64 samples of the same seeds, "LABEL#K" up to 8 of value K."""
    run.write_rows(row for judged in table for row in _described(meter, options, judged))
    seeds = seed_range("figures", options.seed, SHOWN)
    arrays: dict[str, np.ndarray] = {"seeds": np.asarray(seeds)}
    for judged in table:
        if judged.drawn is not None:  # rejection shows nothing that the base does not
            continue
        x = rounded(judged.contender.sample(seeds), base.codec).x
        images, values = base.codec.to_images(x), meter.judging(x.to(run.device))
        arrays[judged.label] = images[:GRID]
        for value in range(len(meter.names)):
            arrays[f"{judged.label}#{value}"] = images[values == value][:GROUP]
    write_arrays(run.path / "grids.npz", arrays)


def _described(meter: Meter, options: ShiftOptions, judged: Judged) -> Iterator[dict[str, JSON]]:
    """One self-describing row per figure: distances of every draw; shares, TV and KL of all samples."""
    contender, size = judged.contender, options.evaluation.samples
    about: dict[str, JSON] = {"label": contender.label, "w": contender.w, "nfe": contender.nfe}
    seeds = seed_range("evaluation", options.seed, options.evaluation.draws * size)
    drawn = seeds if judged.drawn is None else range(seeds.start, seeds.start + judged.drawn)
    for index, (draw, distances) in enumerate(zip(judged.draws, judged.distances)):
        part = drawn if judged.drawn is not None else drawn[index * size : (index + 1) * size]
        for row in meter.rows(draw, distances, part):
            yield {**about, **row.to_json(), "draw": index}
    for row in meter.rows_of_shares(judged.seen, drawn):
        yield {**about, **row.to_json()}
