"""The pages of loops and of the pollution experiment: what becomes of a model fed with models' samples."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from sims.report.blocks import (
    Block,
    Cell,
    Column,
    Fact,
    Images,
    Prose,
    Section,
    Table,
    details,
    facts,
    present,
    prose,
    table,
)
from sims.report.context import Context, figure_facts, heading, in_order
from sims.report.curves import (
    SHOWN,
    Either,
    Loops,
    axis_of,
    curve_panels,
    distances_of,
    is_distance,
    point_grid,
    strength_panels,
    thinned,
)
from sims.report.head import Head
from sims.report.numbers import (
    DASH,
    count,
    decimals,
    ends,
    fixed,
    percent,
    plus_minus,
    short_count,
    strength,
)
from sims.report.strips import make_strip, split_key
from sims.report.tables import diverged, extractor_text, made_for, reproduce, trusted_table
from sims.results.common import Figure, Interval
from sims.results.loop import (
    Arm,
    LevelArm,
    LevelComparison,
    LoopResult,
    PollutionResult,
    Reliability,
    StrengthChoice,
    TrainedOn,
    TrustedResult,
    Verdict,
    Verdicts,
)

VERDICTS = {"mad": "collapses (MAD)", "weak": "weak prevention", "strong": "strong prevention"}


def loop_head(result: Either) -> Head:
    """The conclusion, as the run drew it, and the main distance of every arm at the last generation or level."""
    axis, names, tiles = axis_of(result), distances_of(result), []
    for arm in result.arms[:SHOWN] if names else ():
        value = Figure.of(result.curves[names[0]][arm.name][-1])
        note = f"{figure_facts(result, names[0]).title}, {axis.text(axis.places[-1])}"
        tiles.append(Fact(arm.label, fixed(value.mean, decimals([value.mean])), note))
    return Head.of(result, diverged(result.arms), facts=tiles)


def loop_table(result: LoopResult) -> Table | None:
    """The closing table of a loop: every arm at generation 0 and at the last, its compute and its verdict."""
    curves, last = result.curves, result.generations
    main = distances_of(result)[0]
    others = ("fd_held_out", "recall") if main == "fd" else ()

    def column(name: str, generation: int, drop: int = 0) -> Column[Arm]:
        places = 4 if main != "fd" else 2 if is_distance(result, name) else 3
        title = f"{figure_facts(result, name).title}, {generation}"
        return Column(title, lambda arm: plus_minus(Figure.of(curves[name][arm.name][generation]), places), drop=drop)

    columns: list[Column[Arm]] = [
        Column("arm", lambda arm: arm.label, False),
        column(main, 0, 4),
        column(main, last),
        *(column(name, last, 3 - place) for place, name in enumerate(others) if name in curves),
        Column("diverged", lambda arm: count(arm.diverged) if arm.diverged else ""),
        Column("compute", lambda arm: short_count(arm.cost.total), drop=1),
        Column("verdict", lambda arm: verdict_in_short(result.verdicts.get(arm.name)), False),
    ]
    caption = "Compute: of one repeat, in network evaluations; a training image is three."
    return table(result.arms, columns, caption, title=result.title)


def verdict_in_short(verdicts: Verdicts | None) -> str:
    """The verdicts on an arm, as a cell of a table."""
    if verdicts is None:
        return DASH
    words = ["collapses"] if verdicts.mad and verdicts.mad.holds else []
    for kind, verdict in (("strong", verdicts.strong), ("weak", verdicts.weak)):
        if verdict and verdict.holds:
            return ", ".join([*words, f"{kind} prevention"])
    return ", ".join(words) or DASH


def pollution_table(result: PollutionResult) -> Table | None:
    """The closing table of a pollution experiment: FD of every arm at every level."""

    def column(arm: Arm, name: str, place: int) -> Column[int]:
        title = f"{arm.name}: {figure_facts(result, name).title}"
        curve = result.curves[name][arm.name]
        return Column(title, lambda level: plus_minus(Figure.of(curve[level]), 2), drop=place)

    names = [name for name in ("fd", "fd_held_out") if name in result.curves]
    columns = [Column[int]("synthetic", lambda level: f"+{result.levels[level]:g} %")]
    columns += [column(arm, name, place) for arm in result.arms for place, name in enumerate(names)]
    return table(range(len(result.levels)), columns, " ".join(diverged(result.arms)), title=result.title)


class LoopPage:
    """The sections that both pages have."""

    def __init__(self, context: Loops) -> None:
        self.c, self.result, self.palette = context, context.result, context.palette
        self.axis = axis_of(self.result)
        self.labels = {arm.name: arm.label for arm in self.result.arms}

    def arm(self, arm: Arm) -> Cell:
        return self.named(arm.name)

    def named(self, name: str) -> Cell:
        return Cell(self.labels.get(name, name), swatch=self.palette[name].variable)

    def distances(self) -> list[Block]:
        names = distances_of(self.result)
        if not names:
            return []
        text = prose(extractor_text(self.result.extractor))
        caption = "Distances: mean over the repeats. Lower is better."
        return present(curve_panels(self.c, "distances", names, caption), self._figure_table(names[:2]), text)

    def others(self) -> list[Block]:
        names = [name for name in in_order(self.result, self.result.curves) if not is_distance(self.result, name)]
        caption = "The other figures, measured on the same samples."
        everything = self._figure_table(in_order(self.result, self.result.curves))
        panels = curve_panels(self.c, "figures", names, caption) if names else None
        return present(panels, details("All figures", everything))

    def _figure_table(self, names: Sequence[str]) -> Table | None:
        """Figures of every arm: a line per figure and arm, a column per level or for some generations."""
        Line = tuple[str, Arm]
        curves, axis = self.result.curves, self.axis
        digits = {n: decimals(max(values) for curve in curves[n].values() for values in curve) for n in names}

        def column(place: float) -> Column[Line]:
            def cell(line: Line) -> Cell:
                value = Figure.of(curves[line[0]][line[1].name][axis.places.index(place)])
                return Cell(plus_minus(value, digits[line[0]]), title=ends(value, digits[line[0]]))

            return Column(axis.text(place), cell)

        columns: list[Column[Line]] = [
            Column("of", lambda line: heading(self.result, line[0]), False),
            Column("arm", lambda line: self.arm(line[1]), False),
            *map(column, axis.shown()),
        ]
        lines = [(name, arm) for name in names for arm in self.result.arms]
        return table(lines, columns, "Mean over the repeats ± half the 95 % interval.")

    def samples(self) -> list[Block]:
        """Samples of every arm at a few generations or levels, the same seeds in the same columns."""
        images = {split_key(key): array for key, array in self.c.pictures.images.items()}
        strips = []
        for name, label in self.labels.items():
            for place in thinned(sorted(place for arm, place in images if arm == name and place is not None)):
                text = f"{label}, {self.axis.text(place)}"
                strips.append(make_strip(images[name, place], text, f"Samples of {text}", self.palette[name].variable))
        if strips and self.c.pictures.real is not None:
            strips.append(make_strip(self.c.pictures.real, "real", "Clean training images, not samples"))
        caption = "Each column starts from the same noise. Samples are not selected."
        return present(Images(strips, caption) if strips else None, point_grid(self.c))

    def cost(self) -> list[Block]:
        columns = [
            Column[Arm]("arm", self.arm, False),
            Column[Arm]("training images", lambda arm: short_count(arm.cost.images or None)),
            Column[Arm]("network evaluations besides", lambda arm: short_count(arm.cost.evaluations or None)),
            Column[Arm]("all, in network evaluations", lambda arm: made_for(arm.cost)),
            Column[Arm]("NFE", lambda arm: short_count(arm.nfe)),
        ]
        what = "a level" if self.axis.is_level else "all generations"
        caption = (
            f"What {what} of one repeat cost; a training image counts as three network evaluations, for its forward "
            "and backward pass. NFE: network evaluations of a sample."
        )
        return present(table(self.result.arms, columns, caption))

    def trained_on(self) -> list[Block]:
        """What every generation, or the model of every level, was trained on; and what the classes became."""
        items = self.result.trained_on

        def source(item: TrainedOn) -> str:
            return ", ".join(f"{count(n)} of generation {earlier}" for earlier, n in item.synthetic.items())

        fresh = any(item.fresh for item in items)
        columns = [
            Column[TrainedOn]("pollution" if self.axis.is_level else "generation", lambda item: self._place(item)),
            Column[TrainedOn]("real", lambda item: count(item.real)),
            *([Column[TrainedOn]("fresh", lambda item: count(item.fresh))] if fresh else []),
            Column[TrainedOn]("synthetic", lambda item: count(sum(item.synthetic.values()))),
            Column[TrainedOn]("synthetic from", source, False),
        ]
        what = "the model of every level" if self.axis.is_level else "every generation"
        caption = "Samples; the training images, fresh ones of the same data, and those that models drew."
        lines = table(items, columns, caption)
        return present(details(f"What {what} was trained on", lines), details("Classes", self._classes()))

    def _place(self, item: TrainedOn) -> str:
        return f"{item.place:g} %" if self.axis.is_level else f"{item.place:g}"

    def _classes(self) -> Table | None:
        """The share of every class among the last samples of each arm, by the classifier, beside the real data's."""
        data = self.result.data
        shares = {arm: found for arm, found in self.result.shares.items() if found[-1]}  # not every extractor sees any

        def column(name: str) -> Column[int]:
            values = shares[name][-1]
            return Column(self.labels.get(name, name), lambda k: percent(values[k]))

        real = Column[int]("real data", lambda k: percent(data.class_shares[k]) if data.class_shares else DASH)
        columns = [Column[int]("class", lambda k: data.class_names[k], False), real, *map(column, shares)]
        where = self.axis.text(self.axis.places[-1])
        caption = (
            f"Shares of the classes among the samples at {where}, by the extractor’s classifier; mean over repeats."
        )
        return table(range(len(data.class_names)), columns, caption)

    def end(self) -> list[Section]:
        return [
            Section("cost", "Cost", self.cost()),
            Section("trained", "Real and synthetic data", self.trained_on()),
            Section("reproduce", "Reproduce", reproduce(self.result.reproduction)),
        ]


def loop_sections(c: Context[LoopResult]) -> list[Section]:
    """Every section of a loop's page; those without blocks are left out."""
    page = LoopPage(c)
    return [
        Section("setting", "Setting", _setting(c.result)),
        Section("distances", "Distance to the real distribution", page.distances()),
        Section("verdicts", "Verdicts", present(_verdicts(c.result, page))),
        Section("selection", "Choice of strengths", present(_selection(c.result))),
        Section("samples", "Samples", page.samples()),
        Section("figures", "Other figures", page.others()),
        *page.end(),
    ]


def _setting(result: LoopResult) -> list[Block]:
    judged = f"{len(result.judged)} of them judged" if 0 < len(result.judged) < result.repeats else ""
    strengths = dict.fromkeys(strength(arm.w) for arm in result.arms if arm.w)
    tiles = facts(
        Fact("Kind", result.kind),
        Fact("Generations", count(result.generations)),
        Fact("Repeats", count(result.repeats), judged),
        Fact("Strengths", ", ".join(strengths)),
        Fact("Passed on", result.passed_on, "samples of this model train the next generation"),
        Fact("Begins from", result.start, f"denoiser: {result.denoiser}"),
    )
    return present(tiles)


def _verdicts(result: LoopResult, page: LoopPage) -> Table | None:
    Line = tuple[Arm, str, Verdict]
    lines: list[Line] = []
    for arm in result.arms:
        verdicts = result.verdicts.get(arm.name, Verdicts())
        lines += [(arm, kind, found) for kind in VERDICTS if (found := getattr(verdicts, kind)) is not None]

    def because(line: Line) -> Cell:
        verdict = line[2]
        against = f"against {page.labels.get(verdict.against, verdict.against)}" if verdict.against else ""
        return Cell(
            verdict.text, against, "; ".join(f"{name}: {ends(found, 4)}" for name, found in verdict.intervals.items())
        )

    columns: list[Column[Line]] = [
        Column("arm", lambda line: page.arm(line[0]), False),
        Column("verdict", lambda line: VERDICTS[line[1]], False),
        Column("holds", lambda line: "yes" if line[2].holds else "no", False),
        Column("because", because, False),
    ]
    return table(lines, columns, "What each verdict means is in docs/loops.md.")


def _selection(result: LoopResult) -> Table | None:
    Line = tuple[str, StrengthChoice]
    columns: list[Column[Line]] = [
        Column("remedy", lambda line: line[0], False),
        Column("w", lambda line: strength(line[1].w) + (" (the largest tried)" if line[1].at_edge else "")),
        Column("after generations", lambda line: count(line[1].generations)),
        Column("replicas", lambda line: count(line[1].replicas or None)),
        Column("distance by w", lambda line: ", ".join(f"{w}: {d:.4g}" for w, d in line[1].distances.items()), False),
    ]
    return table(result.selection.items(), columns, "Strengths were chosen beforehand, by the lowest distance.")


def pollution_sections(c: Context[PollutionResult]) -> list[Section]:
    """Every section of a pollution experiment's page; those without blocks are left out."""
    page, result = LoopPage(c), c.result
    repeats = facts(Fact("Repeats", count(result.repeats)))
    return [
        Section("setting", "Setting", present(repeats)),
        Section("distances", "Distance to the real distribution", page.distances()),
        Section("levels", "Against standard training", _comparisons(c, page)),
        Section("samples", "Samples", page.samples()),
        Section("figures", "Other figures", page.others()),
        Section("strengths", "Strength", present(strength_panels(c), _strength_table(c, page))),
        Section("trusted", "Choosing w with a few trusted images", _trusted(c)),
        *page.end(),
    ]


def _comparisons(c: Context[PollutionResult], page: LoopPage) -> list[Block]:
    """The paired differences from standard training at every level."""
    items = c.result.comparisons
    places = decimals(max(item.means) for item in items)

    def change(value: Interval | None) -> Cell:
        return Cell(DASH) if value is None else Cell(f"{plus_minus(value, 1)} %", title=ends(value, 1))

    columns: list[Column[LevelComparison]] = [
        Column("arm", lambda item: page.named(item.a), False),
        Column("against", lambda item: page.labels.get(item.b, item.b), False),
        Column("of", lambda item: figure_facts(c.result, item.figure).title, False),
        Column("pollution", lambda item: f"{item.level:g} %"),
        Column("means", lambda item: " and ".join(fixed(value, places) for value in item.means)),
        Column("difference", lambda item: Cell(plus_minus(item.difference, places), title=ends(item.difference, 2))),
        Column("change", lambda item: change(item.change_percent)),
        Column("verdict", lambda item: "better" if item.better else "not shown", False),
        Column("over clean", lambda item: plus_minus(item.over_clean, 2)),
    ]
    caption = (
        "Paired by repeat; ± is half the 95 % interval. Over clean: as a multiple of standard training without "
        "synthetic samples."
    )
    main = [item for item in items if item.figure == items[0].figure]
    rest = [item for item in items if item.figure != items[0].figure]
    return present(table(main, columns, caption), details("In the other distances", table(rest, columns)))


def _strength_table(c: Context[PollutionResult], page: LoopPage) -> Table | None:
    """The strengths of every arm at every level: mean over the repeats, and how often at the edge of those tried."""
    arms = [arm for arm in c.result.arms if any(map(any, arm.strengths))]

    def column(place: int) -> Column[LevelArm]:
        def cell(arm: LevelArm) -> Cell:
            found = c.result.strengths.get(arm.name)
            values = found.chosen[place] if found else arm.strengths[place]
            edge = sum(found.at_edge[place]) if found else 0
            text = f"{strength(sum(values) / len(values))} ({', '.join(map(strength, values))})"
            return Cell(text, f"{edge} at the edge" if edge else "")

        return Column(f"{c.result.levels[place]:g} %", cell)

    columns = [Column[LevelArm]("arm", page.arm, False), *map(column, range(len(c.result.levels)))]
    return table(arms, columns, "w at every level of pollution: the mean, and that of each repeat.")


def _trusted(c: Context[PollutionResult]) -> list[Block]:
    """How good the strength is that a few trusted images choose, by their number."""
    blocks: list[Block | None] = []
    for name, found in c.result.trusted.items():
        cells = [item for level in found.reliability for size in level for item in size]
        blocks += [_reliability(c.palette.name(name), cells), _in_this_run(found)]
        choices = [
            trusted_table(choice, f"{c.palette.name(name)}, {level:g} %, repeat {repeat}")
            for level, row in zip(c.result.levels, found.choices)
            for repeat, choice in enumerate(row)
        ]
        blocks.append(details("Every choice", *choices))
    return present(*blocks)


def _reliability(name: str, cells: Sequence[Reliability]) -> Table | None:
    def column(title: str, key: str) -> Column[int]:
        def cell(size: int) -> str:
            values = [getattr(item, key) for item in cells if item.size == size]
            mean = sum(values) / len(values)
            return percent(mean, 0) if key == "within_10_percent" else fixed(mean, 3)

        return Column(title, cell)

    columns = [
        Column[int]("trusted images", count),
        column("mean", "ratio"),
        column("90th percentile", "ratio_90"),
        column("within 10 %", "within_10_percent"),
        column("mean w", "w"),
    ]
    caption = (
        f"{name}: FD at the strength that random sets of trusted images choose, over FD at the best strength "
        "(1 = as good), over all levels and repeats."
    )
    return table(dict.fromkeys(item.size for item in cells), columns, caption)


def _in_this_run(found: TrustedResult) -> Prose:
    ratios, strengths = [*chain(*found.ratio)], [*chain(*found.w)]
    return Prose(
        f"The {count(found.size)} trusted images of this run, in the features of {found.features}: "
        f"{fixed(sum(ratios) / len(ratios), 3)} on average, {fixed(max(ratios), 3)} at worst, "
        f"with w from {strength(min(strengths))} to {strength(max(strengths))}."
    )
