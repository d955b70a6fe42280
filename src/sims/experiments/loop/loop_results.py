"""What loops and the pollution experiment leave and find: the entries of their levels, results, ``metrics.jsonl``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from sims.config import JSON
from sims.data.dataset import Dataset
from sims.experiments.facts import class_warnings, data_facts, drawn_shares, reproduction
from sims.experiments.loop.models import Generation, Measured
from sims.experiments.loop.options import LoopOptions, PollutionOptions, RepeatedOptions
from sims.experiments.loop.remedies import STANDARD, arm_of, is_guided, looks_of
from sims.experiments.loop.verdicts import conclusion, verdicts_on
from sims.files import parse_json
from sims.metrics.intervals import paired_interval, paired_ratio_interval
from sims.results.common import Cost, Figure, FigureFacts, Floor, TrustedChoice
from sims.results.loop import (
    Arm,
    Curves,
    LevelArm,
    LevelComparison,
    LoopResult,
    PollutionResult,
    Reliability,
    StrengthChoice,
    StrengthCurves,
    TrainedOn,
    TrustedResult,
)
from sims.runs.directory import Run
from sims.sampling import shares_to_draw
from sims.scoring.figures import run_figures
from sims.scoring.judge import Judge

Table = dict[str, list[list[Measured]]]  # arm -> generation or level -> the entry of each repeat
COMPARED = ("fd", "fd_held_out", "check_fd", "check_fd_held_out")


@dataclass(frozen=True)
class AtLevel:
    """An arm at a level: how good it is, its strength, and what making it cost."""

    measured: Measured
    w: float
    cost: Cost


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The strengths chosen for a remedy at a level: by the distances to the clean data (``clean``), by trusted images.

    ``ratio`` is FD at the latter over FD at the former; ``features`` are those that the trusted images' rule looks at.
    """

    chosen: float
    clean: dict[str, float]
    trusted: TrustedChoice
    ratio: float
    reliability: list[Reliability]
    features: str


@dataclass(frozen=True)
class Level:
    """What a finished level leaves; ``strengths`` are the figures of every guided remedy at every strength."""

    trained_on: TrainedOn
    arms: dict[str, AtLevel] = field(default_factory=dict)
    strengths: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    choices: dict[str, Choice] = field(default_factory=dict)


def image_loop_result(
    run: Run,
    options: LoopOptions,
    arms: Sequence[Arm],
    repeats: Sequence[dict[str, list[Generation]]],
    selection: dict[str, StrengthChoice],
    judge: Judge,
    data: tuple[Dataset, Dataset],
) -> LoopResult:
    """The result of a loop on images, from every generation of every arm in each repeat; writes ``metrics.jsonl``."""
    span = range(options.generations + 1)
    table = {arm.name: [[repeat[arm.name][place].measured for repeat in repeats] for place in span] for arm in arms}
    if run.is_main:
        _write_rows(run, (
            ({"repeat": index, "arm": arm.name, "generation": place, "w": arm.w}, table[arm.name][place][index])
            for index in range(len(repeats)) for arm in arms for place in span
        ))  # fmt: skip
    first, drawn = repeats[0], _drawn(options, data[0])
    curves = _curves(table)
    verdicts = verdicts_on(curves["fd"], arms)
    return LoopResult(
        title=f"{options.generations} generations of {data[0].name} ({options.kind})",
        headline=conclusion(curves["fd"], arms, verdicts, "FD to train", 2),
        figures=_facts(curves),
        data=data_facts(*data, options.data.conditional, drawn),
        warnings=tuple(class_warnings(data[0].class_names, drawn, data[0].labels, options.evaluation.samples)),
        extractor=judge.about(),
        second_extractor=judge.about_second(),
        floor=_floor(judge, options.evaluation.samples, data),
        looks=looks_of(options.remedies),
        reproduction=reproduction(options),
        kind=options.kind,
        generations=options.generations,
        repeats=len(repeats),
        passed_on=options.passed_on,
        start=options.start,
        arms=tuple(
            replace(
                arm,
                cost=sum((entry.cost for entry in first[arm.name]), Cost()),
                nfe=first[arm.name][0].measured.nfe,
                diverged=_diverged(table[arm.name]),
            )
            for arm in arms
        ),
        curves=curves,
        shares=_shares(table),
        trained_on=tuple(entry.trained_on for entry in first[arms[0].name]),
        selection=selection,
        verdicts=verdicts,
        judged=tuple(range(len(repeats))),
    )


def _drawn(options: RepeatedOptions, data: Dataset) -> tuple[float, ...]:
    """The shares by which the first generation's classes are drawn."""
    return drawn_shares(data.num_classes * options.data.conditional, shares_to_draw(options.sampler, data))


def pollution_result(
    run: Run,
    options: PollutionOptions,
    repeats: Sequence[list[Level]],
    judge: Judge,
    data: tuple[Dataset, Dataset],
) -> PollutionResult:
    """The result of a pollution experiment, from the levels of each repeat; writes ``metrics.jsonl``."""
    span, names = range(len(options.levels)), list(repeats[0][0].arms)
    table = {name: [[repeat[place].arms[name].measured for repeat in repeats] for place in span] for name in names}
    if run.is_main:
        _write_rows(run, (
            ({"repeat": index, "arm": name, "level": level, "w": arm.w}, arm.measured)
            for index, repeat in enumerate(repeats) for level, entry in zip(options.levels, repeat)
            for name, arm in entry.arms.items()
        ))  # fmt: skip
    curves, drawn = _curves(table), _drawn(options, data[0])
    guided = [name for name in options.remedies if is_guided(name)]
    compared = tuple(_compared(options, curves, [arm for name in guided for arm in (name, f"{name}-trusted")]))
    return PollutionResult(
        title=f"{data[0].name} polluted by an earlier model's samples",
        headline=_conclusion(compared, guided),
        figures=_facts(curves),
        data=data_facts(*data, options.data.conditional, drawn),
        warnings=tuple(class_warnings(data[0].class_names, drawn, data[0].labels, options.evaluation.samples)),
        extractor=judge.about(),
        second_extractor=judge.about_second(),
        floor=_floor(judge, options.evaluation.samples, data),
        looks=looks_of(options.remedies),
        reproduction=reproduction(options),
        levels=options.levels,
        repeats=len(repeats),
        arms=tuple(_level_arm(name, repeats, table[name]) for name in names),
        curves=curves,
        shares=_shares(table),
        trained_on=tuple(level.trained_on for level in repeats[0]),
        strengths={name: _strengths(name, repeats) for name in guided},
        trusted={name: _trusted(name, repeats) for name in guided},
        comparisons=compared,
    )


def _write_rows(run: Run, entries: Iterable[tuple[dict[str, JSON], Measured]]) -> None:
    """``metrics.jsonl``: a self-describing row for every figure of every arm, generation or level, draw and repeat."""
    run.write_rows(
        {**about, **parse_json(row, "a row of figures")} for about, measured in entries for row in measured.rows
    )


def _curves(table: Table) -> Curves:
    """Every figure that was measured everywhere: arm -> generation or level -> the value of each repeat."""
    every = [entry.figures for rows in table.values() for row in rows for entry in row]
    return {
        figure: {name: [[entry.figures[figure] for entry in row] for row in rows] for name, rows in table.items()}
        for figure in every[0]
        if all(figure in figures for figures in every)
    }


def _shares(table: Table) -> dict[str, list[list[float]]]:
    """The recognized classes' shares: arm -> generation or level -> mean over the repeats; none without classes."""
    return {
        name: [np.mean([entry.shares for entry in row], axis=0).tolist() for row in rows]
        for name, rows in table.items()
        if rows[0][0].shares
    }


def _diverged(rows: list[list[Measured]]) -> int:
    return sum(entry.diverged for row in rows for entry in row)


def _facts(curves: Curves) -> dict[str, FigureFacts]:
    return {name: facts for name, facts in run_figures().items() if name in curves}


def _floor(judge: Judge, samples: int, data: tuple[Dataset, Dataset]) -> Floor:
    """What real data score by every Fréchet distance: as many samples of a perfect model, or all training images."""
    values: dict[str, float] = {}
    for prefix, one in (("", judge), ("check_", judge.second)):
        if one is None:
            continue
        values[f"{prefix}fd"] = one.perfect(samples)
        if one.floor is not None:
            values[f"{prefix}fd_held_out"] = one.floor
    text = f"what {samples:,} samples of a perfect model would score; of held-out data, what the training images do"
    return Floor(values, f"{text} ({len(data[0]):,} against {len(data[1]):,})")


def _level_arm(name: str, repeats: Sequence[list[Level]], rows: list[list[Measured]]) -> LevelArm:
    """An arm: its strength at every level and repeat, and what it cost (the same at all levels)."""
    method = name.removesuffix("-trusted")
    how = "chosen by trusted images" if name != method else "chosen by the clean data"
    return LevelArm(
        name=name,
        label=f"{method}, w {how}" if is_guided(method) else arm_of(method).label,
        method=method,
        cost=repeats[0][0].arms[name].cost,
        nfe=rows[-1][0].nfe,
        diverged=_diverged(rows),
        strengths=[[level.arms[name].w for level in levels] for levels in zip(*repeats)],
    )


def _strengths(name: str, repeats: Sequence[list[Level]]) -> StrengthCurves:
    """Every figure of a remedy over w; and the strengths chosen by the clean data."""
    levels = list(zip(*repeats))  # level -> repeat
    keys = list(levels[0][0].strengths[name])
    chosen = [[entry.choices[name].chosen for entry in row] for row in levels]
    return StrengthCurves(
        w=tuple(float(w) for w in keys),
        figures={
            figure: [[[entry.strengths[name][w][figure] for entry in row] for w in keys] for row in levels]
            for figure in levels[0][0].strengths[name][keys[0]]
        },
        chosen=chosen,
        at_edge=[[w == max(map(float, keys)) for w in row] for row in chosen],
    )


def _trusted(name: str, repeats: Sequence[list[Level]]) -> TrustedResult:
    """What trusted images chose for a remedy, and how good that is for other numbers of them."""
    rows = [[entry.choices[name] for entry in row] for row in zip(*repeats)]  # level -> repeat
    first = rows[0][0]
    return TrustedResult(
        size=first.trusted.size,
        features=first.features,
        w=[[choice.trusted.w for choice in row] for row in rows],
        ratio=[[choice.ratio for choice in row] for row in rows],
        choices=[[choice.trusted for choice in row] for row in rows],
        reliability=[
            [[choice.reliability[index] for choice in row] for index in range(len(first.reliability))] for row in rows
        ],
    )


def _compared(options: PollutionOptions, curves: Curves, names: Sequence[str]) -> Iterable[LevelComparison]:
    """Each guided arm against standard training at every level, and against the clean first generation, paired."""
    for name in names:
        for figure in [figure for figure in COMPARED if figure in curves]:
            rows = curves[figure]
            for level, percent in enumerate(options.levels):
                ours, theirs = rows[name][level], rows[STANDARD][level]
                several = len(ours) > 1
                ratios = [value / clean for value, clean in zip(ours, rows[STANDARD][0])]
                yield LevelComparison(
                    a=name,
                    b=STANDARD,
                    figure=figure,
                    level=percent,
                    means=(float(np.mean(ours)), float(np.mean(theirs))),
                    difference=paired_interval(ours, theirs) if several else None,
                    change_percent=paired_ratio_interval(ours, theirs) if several else None,
                    over_clean=Figure.of(ratios) if options.levels[0] == 0 else None,
                )


def _conclusion(compared: Sequence[LevelComparison], guided: Sequence[str]) -> str:
    lines = []
    for name in guided:
        entries = [entry for entry in compared if entry.a == name and entry.figure == "fd" and entry.level > 0]
        if not entries:
            continue
        last = entries[-1]
        text = f"With {last.level:g} % synthetic samples, FD to train is {last.means[1]:.2f} for standard training"
        text += f" and {last.means[0]:.2f} for {name}"
        if last.over_clean is not None:
            text += f" ({last.over_clean.mean:.2f} times the clean first generation's)"
        if last.difference is not None:
            better = [f"{entry.level:g}" for entry in entries if entry.better]
            some = f"{', '.join(better)} %" if better else "no level"
            whole = "every level above 0" if len(better) == len(entries) else some
            text += f"; {name} is significantly better at {whole}"
        lines.append(f"{text}.")
    return " ".join(lines)
