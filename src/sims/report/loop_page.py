"""The pages of loops and of the pollution experiment: what becomes of a model fed with models' samples."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from sims.report import curves
from sims.report import numbers as say
from sims.report.blocks import (
    Block,
    Cell,
    Column,
    Details,
    Fact,
    Images,
    Section,
    Table,
    Text,
    details,
    facts,
    present,
    prose,
    table,
)
from sims.report.context import Context, facts_of, heading, in_order, title
from sims.report.curves import Either, Loops
from sims.report.head import Head
from sims.report.strips import make_strip, split_key
from sims.report.tables import diverged, diverged_column, extractor_text, made_for, reproduce, trusted_table
from sims.results.common import Figure
from sims.results.loop import LevelComparison, LoopResult, PollutionResult, Reliability, TrustedResult, Verdicts

VERDICTS = {"mad": "collapses (MAD)", "weak": "weak prevention", "strong": "strong prevention"}


def loop_head(result: Either) -> Head:
    """The conclusion, as the run drew it, and the main distance of every arm at the last generation or level."""
    tiles, last = [], curves.place_text(result, curves.places_of(result)[-1])
    for name in curves.distances_of(result)[:1]:
        for arm in result.arms[:6]:
            mean = Figure.of(result.curves[name][arm.name][-1]).mean
            tiles.append(Fact(arm.label, say.fixed(mean, say.decimals([mean])), f"{title(result, name)}, {last}"))
    return Head.of(result, diverged(result.arms), facts=tiles)


def loop_table(result: LoopResult) -> Table | None:
    """The closing table of a loop: every arm at generation 0 and at the last, its compute and its verdict."""
    arms, last, main = result.arms, result.generations, curves.distances_of(result)[0]
    others = [name for name in ("fd_held_out", "recall") if main == "fd" and name in result.curves]

    def column(name: str, generation: int, drop: int = 0) -> Column:
        places = 4 if main != "fd" else 2 if facts_of(result, name).kind == "distance" else 3
        values = [Figure.of(result.curves[name][arm.name][generation]) for arm in arms]
        cells = [say.plus_minus(value, places) for value in values]
        return Column(f"{title(result, name)}, {generation}", cells, drop=drop)

    columns = [
        Column("arm", [arm.label for arm in arms], False),
        column(main, 0, drop=4),
        column(main, last),
        *(column(name, last, drop=3 - place) for place, name in enumerate(others)),
        diverged_column(arms),
        Column("compute", [say.short_count(arm.cost.total) for arm in arms], drop=1),
        Column("verdict", [verdict_in_short(result.verdicts.get(arm.name)) for arm in arms], False),
    ]
    caption = "Compute: of one repeat, in network evaluations; a training image is three."
    return table(columns, caption, title=result.title)


def verdict_in_short(verdicts: Verdicts | None) -> str:
    """The verdicts on an arm, as a cell of a table."""
    if verdicts is None:
        return say.DASH
    words = ["collapses"] if verdicts.mad and verdicts.mad.holds else []
    found = (("strong", verdicts.strong), ("weak", verdicts.weak))
    words += [f"{kind} prevention" for kind, verdict in found if verdict and verdict.holds][:1]
    return ", ".join(words) or say.DASH


def pollution_table(result: PollutionResult) -> Table | None:
    """The closing table of a pollution experiment: FD of every arm at every level."""
    columns = [Column("synthetic", [f"+{level:g} %" for level in result.levels])]
    for arm in result.arms:
        for drop, name in enumerate(name for name in ("fd", "fd_held_out") if name in result.curves):
            cells = [say.plus_minus(Figure.of(repeats), 2) for repeats in result.curves[name][arm.name]]
            columns.append(Column(f"{arm.name}: {title(result, name)}", cells, drop=drop))
    return table(columns, " ".join(diverged(result.arms)), title=result.title)


def _arms(c: Loops) -> Column:
    return Column("arm", [_arm(c, arm.name) for arm in c.result.arms], False)


def _label(result: Either, name: str) -> str:
    return next((arm.label for arm in result.arms if arm.name == name), name)


def _arm(c: Loops, name: str) -> Cell:
    return Cell(_label(c.result, name), swatch=c.palette[name].variable)


def _distances(c: Loops) -> list[Block]:
    names = curves.distances_of(c.result)
    text = prose(extractor_text(c.result))
    panels = curves.curve_panels(c, "distances", names, "Distances: mean over the repeats. Lower is better.")
    return present(panels, _figure_table(c, names[:2]), text)


def _others(c: Loops) -> list[Block]:
    everything = in_order(c.result, c.result.curves)
    names = [name for name in everything if name not in curves.distances_of(c.result)]
    panels = curves.curve_panels(c, "figures", names, "The other figures, measured on the same samples.")
    return present(panels, details("All figures", _figure_table(c, everything)))


def _figure_table(c: Loops, names: Sequence[str]) -> Table | None:
    """Figures of every arm: a line per figure and arm, a column per level or for some generations."""
    result, places = c.result, curves.places_of(c.result)
    digits = {n: say.decimals(max(values) for curve in result.curves[n].values() for values in curve) for n in names}
    lines = [(name, arm) for name in names for arm in result.arms]
    columns = [
        Column("of", [heading(result, name) for name, _ in lines], False),
        Column("arm", [_arm(c, arm.name) for _, arm in lines], False, key=True),
    ]
    for place in places if isinstance(result, PollutionResult) else say.thinned(places):
        index = places.index(place)
        values = [(Figure.of(result.curves[name][arm.name][index]), digits[name]) for name, arm in lines]
        cells = [Cell(say.plus_minus(value, digit), title=say.ends(value, digit)) for value, digit in values]
        columns.append(Column(curves.place_text(result, place), cells))
    return table(columns, "Mean over the repeats ± half the 95 % interval.")


def _samples(c: Loops) -> list[Block]:
    """Samples of every arm at a few generations or levels, the same seeds in the same columns."""
    images = {split_key(key): array for key, array in c.pictures.images.items()}
    strips = []
    for arm in c.result.arms:
        for place in say.thinned(sorted(place for name, place in images if name == arm.name and place is not None)):
            text, swatch = f"{arm.label}, {curves.place_text(c.result, place)}", c.palette[arm.name].variable
            strips.append(make_strip(images[arm.name, place], text, f"Samples of {text}", swatch))
    if strips and c.pictures.real is not None:
        strips.append(make_strip(c.pictures.real, "real", "Clean training images, not samples"))
    caption = "Each column starts from the same noise. Samples are not selected."
    return present(Images(strips, caption) if strips else None, curves.point_grid(c))


def _end(c: Loops) -> list[Section]:
    """The sections that close both pages."""
    arms, is_level = c.result.arms, isinstance(c.result, PollutionResult)
    columns = [
        _arms(c),
        Column("training images", [say.short_count(arm.cost.images or None) for arm in arms]),
        Column("network evaluations besides", [say.short_count(arm.cost.evaluations or None) for arm in arms]),
        Column("all, in network evaluations", [made_for(arm.cost) for arm in arms]),
        Column("NFE", [say.short_count(arm.nfe) for arm in arms]),
    ]
    caption = (
        f"What {'a level' if is_level else 'all generations'} of one repeat cost; a training image counts as three "
        "network evaluations, for its forward and backward pass. NFE: network evaluations of a sample."
    )
    return [
        Section("cost", "Cost", present(table(columns, caption))),
        Section("trained", "Real and synthetic data", present(_trained_on(c), details("Classes", _classes(c)))),
        Section("reproduce", "Reproduce", reproduce(c.result.reproduction)),
    ]


def _trained_on(c: Loops) -> Details | None:
    """What every generation, or the model of every level, was trained on."""
    items, is_level = c.result.trained_on, isinstance(c.result, PollutionResult)
    sources = [
        ", ".join(f"{say.count(number)} of generation {earlier}" for earlier, number in item.synthetic.items())
        for item in items
    ]
    places = [curves.place_text(c.result, item.place).removeprefix("generation ") for item in items]
    columns = [
        Column("pollution" if is_level else "generation", places),
        Column("real", [say.count(item.real) for item in items]),
        Column("fresh", [say.count(item.fresh) if any(x.fresh for x in items) else "" for item in items]),
        Column("synthetic", [say.count(sum(item.synthetic.values())) for item in items]),
        Column("synthetic from", sources, False),
    ]
    what = "the model of every level" if is_level else "every generation"
    caption = "Samples; the training images, fresh ones of the same data, and those that models drew."
    return details(f"What {what} was trained on", table(columns, caption))


def _classes(c: Loops) -> Table | None:
    """The share of every class among the last samples of each arm, by the classifier, beside the real data's."""
    data = c.result.data
    shares = {arm: found[-1] for arm, found in c.result.shares.items() if found[-1]}  # not every extractor sees any
    columns = [Column(_label(c.result, arm), [say.percent(share) for share in last]) for arm, last in shares.items()]
    named = [
        Column("class", data.class_names if shares else (), False),
        Column("real data", [say.percent(share) for share in data.class_shares]),
    ]
    where = curves.place_text(c.result, curves.places_of(c.result)[-1])
    caption = f"Shares of the classes among the samples at {where}, by the extractor’s classifier; mean over repeats."
    return table([*named, *columns], caption)


def loop_sections(c: Context[LoopResult]) -> list[Section]:
    """Every section of a loop's page; those without blocks are left out."""
    return [
        Section("setting", "Setting", present(_setting(c.result))),
        Section("distances", "Distance to the real distribution", _distances(c)),
        Section("verdicts", "Verdicts", present(_verdicts(c))),
        Section("selection", "Choice of strengths", present(_selection(c.result))),
        Section("samples", "Samples", _samples(c)),
        Section("figures", "Other figures", _others(c)),
        *_end(c),
    ]


def _setting(result: LoopResult) -> Block | None:
    judged = f"{len(result.judged)} of them judged" if 0 < len(result.judged) < result.repeats else ""
    return facts(
        Fact("Kind", result.kind),
        Fact("Generations", say.count(result.generations)),
        Fact("Repeats", say.count(result.repeats), judged),
        Fact("Strengths", ", ".join(dict.fromkeys(say.strength(arm.w) for arm in result.arms if arm.w))),
        Fact("Passed on", result.passed_on, "samples of this model train the next generation"),
        Fact("Begins from", result.start, f"denoiser: {result.denoiser}"),
    )


def _verdicts(c: Context[LoopResult]) -> Table | None:
    kinds = [(arm.name, kind) for arm in c.result.arms if arm.name in c.result.verdicts for kind in VERDICTS]
    lines = [(arm, kind, getattr(c.result.verdicts[arm], kind)) for arm, kind in kinds]
    lines = [line for line in lines if line[2] is not None]
    reasons = []
    for _, _, verdict in lines:
        against = f"against {_label(c.result, verdict.against)}" if verdict.against else ""
        limits = "; ".join(f"{name}: {say.ends(interval, 4)}" for name, interval in verdict.intervals.items())
        reasons.append(Cell(verdict.text, against, limits))
    columns = [
        Column("arm", [_arm(c, arm) for arm, _, _ in lines], False),
        Column("verdict", [VERDICTS[kind] for _, kind, _ in lines], False),
        Column("holds", ["yes" if verdict.holds else "no" for _, _, verdict in lines], False),
        Column("because", reasons, False),
    ]
    return table(columns, "What each verdict means is in docs/loops.md.")


def _selection(result: LoopResult) -> Table | None:
    chosen = result.selection.values()
    distances = [", ".join(f"{w}: {distance:.4g}" for w, distance in found.distances.items()) for found in chosen]
    columns = [
        Column("remedy", list(result.selection), False),
        Column("w", [say.strength(found.w) + (", the largest tried" if found.at_edge else "") for found in chosen]),
        Column("after generations", [say.count(found.generations) for found in chosen]),
        Column("replicas", [say.count(found.replicas or None) for found in chosen]),
        Column("distance by w", distances, False),
    ]
    return table(columns, "Strengths were chosen beforehand, by the lowest distance.")


def pollution_sections(c: Context[PollutionResult]) -> list[Section]:
    """Every section of a pollution experiment's page; those without blocks are left out."""
    first, *others = dict.fromkeys(item.figure for item in c.result.comparisons) or [""]
    rest = details("In the other distances", _comparisons(c, others))
    return [
        Section("setting", "Setting", present(facts(Fact("Repeats", say.count(c.result.repeats))))),
        Section("distances", "Distance to the real distribution", _distances(c)),
        Section("levels", "Against standard training", present(_comparisons(c, [first]), rest)),
        Section("samples", "Samples", _samples(c)),
        Section("figures", "Other figures", _others(c)),
        Section("strengths", "Strength", present(curves.strength_panels(c), _strength_table(c))),
        Section("trusted", "Choosing w with a few trusted images", _trusted(c)),
        *_end(c),
    ]


def _comparisons(c: Context[PollutionResult], figures: Sequence[str]) -> Table | None:
    """The paired differences from standard training at every level."""
    items = [item for item in c.result.comparisons if item.figure in figures]
    places = say.decimals(max(item.means) for item in items)

    def change(item: LevelComparison) -> Cell:
        value = item.change_percent
        return Cell(f"{say.plus_minus(value, 1)} %" if value else "", title=say.ends(value, 1))

    differences = [(item.difference, say.ends(item.difference, places)) for item in items]
    columns = [
        Column("arm", [_arm(c, item.a) for item in items], False),
        Column("of", [title(c.result, item.figure) for item in items], False, key=True),
        Column("pollution", [f"{item.level:g} %" for item in items], key=True),
        Column("means", [" and ".join(say.fixed(mean, places) for mean in item.means) for item in items]),
        Column("difference", [Cell(say.plus_minus(value, places), title=limits) for value, limits in differences]),
        Column("change", [change(item) for item in items]),
        Column("verdict", ["better" if item.better else "not shown" for item in items], False),
        Column("over clean", [say.plus_minus(item.over_clean, 2) for item in items]),
    ]
    caption = (
        f"Against {', '.join(dict.fromkeys(_label(c.result, item.b) for item in items))}, paired by repeat; ± is half "
        "the 95 % interval. Over clean: as a multiple of standard training without synthetic samples."
    )
    return table(columns, caption)


def _strength_table(c: Context[PollutionResult]) -> Table | None:
    """The strengths of every arm at every level: mean over the repeats, and how often at the edge of those tried."""
    arms = [arm for arm in c.result.arms if any(map(any, arm.strengths))]
    columns = [Column("arm", [_arm(c, arm.name) for arm in arms], False)]
    for place, level in enumerate(c.result.levels):
        cells = []
        for arm in arms:
            found = c.result.strengths.get(arm.name)
            values = found.chosen[place] if found else arm.strengths[place]
            edge = sum(found.at_edge[place]) if found else 0
            text = f"{say.strength(sum(values) / len(values))} ({', '.join(map(say.strength, values))})"
            cells.append(Cell(text, f"{edge} at the edge" if edge else ""))
        columns.append(Column(f"{level:g} %", cells))
    return table(columns, "w at every level of pollution: the mean, and that of each repeat.")


def _trusted(c: Context[PollutionResult]) -> list[Block]:
    """How good the strength is that a few trusted images choose, by their number."""
    blocks: list[Block | None] = []
    for remedy, found in c.result.trusted.items():
        name = c.palette.name(remedy)
        reliability = _reliability(name, [item for level in found.reliability for size in level for item in size])
        choices = [
            trusted_table(choice, f"{name}, {level:g} %, repeat {repeat}")
            for level, row in zip(c.result.levels, found.choices)
            for repeat, choice in enumerate(row)
        ]
        blocks += [reliability, _in_this_run(found), details("Every choice", *choices)]
    return present(*blocks)


def _reliability(name: str, cells: Sequence[Reliability]) -> Table | None:
    sizes = [[item for item in cells if item.size == size] for size in dict.fromkeys(item.size for item in cells)]

    def means(key: str) -> list[float]:
        return [sum(getattr(item, key) for item in items) / len(items) for items in sizes]

    columns = [
        Column("trusted images", [say.count(items[0].size) for items in sizes]),
        Column("mean", [say.fixed(mean, 3) for mean in means("ratio")]),
        Column("90th percentile", [say.fixed(mean, 3) for mean in means("ratio_90")]),
        Column("within 10 %", [say.percent(mean, 0) for mean in means("within_10_percent")]),
        Column("mean w", [say.fixed(mean) for mean in means("w")]),
    ]
    caption = (
        f"{name}: FD at the strength that random sets of trusted images choose, over FD at the best strength "
        "(1 = as good), over all levels and repeats."
    )
    return table(columns, caption)


def _in_this_run(found: TrustedResult) -> Text:
    ratios, strengths = [*chain(*found.ratio)], [*chain(*found.w)]
    return Text(
        f"The {say.count(found.size)} trusted images of this run, in the features of {found.features}: "
        f"{say.fixed(sum(ratios) / len(ratios), 3)} on average, {say.fixed(max(ratios), 3)} at worst, "
        f"with w from {say.strength(min(strengths))} to {say.strength(max(strengths))}."
    )
