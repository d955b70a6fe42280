"""The tables and passages that several pages share; each is None where there is nothing to show."""

from __future__ import annotations

from collections.abc import Sequence

from sims.report.blocks import Block, Cell, Code, Column, Details, Table, details, present, table
from sims.report.context import Context, best_value, figure_facts, heading, in_order
from sims.report.numbers import (
    DASH,
    count,
    decimals,
    duration,
    ends,
    fixed,
    percent,
    plus_minus,
    short_count,
    strength,
)
from sims.results.common import Cost, ExtractorFacts, Reproduction, Result, Row, TrustedChoice
from sims.results.loop import Arm

MADE_FOR = "Made for: what making the sampler cost beyond the base, in network evaluations; a training image is three."


def made_for(cost: Cost) -> Cell:
    """What something cost, in network evaluations; of what it is made up on hover."""
    parts = (
        (cost.images, "training images"),
        (cost.evaluations, "network evaluations"),
        (cost.labelled, "images labelled"),
    )
    return Cell(short_count(cost.total), title=", ".join(f"{count(number)} {text}" for number, text in parts if number))


def figure_text(result: Result, name: str, row: Row, places: int) -> str:
    """Distances with half their interval; the rest, to keep a table narrow, without (it is shown on hover)."""
    value = row.figures.get(name)
    if value is None:
        return DASH
    if abs(value.mean) >= 100_000:
        return short_count(value.mean)
    distance = figure_facts(result, name).kind == "distance" and not name.startswith("check_")
    return plus_minus(value, places) if distance else fixed(value.mean, places)


def figure_column(result: Result, name: str, rows: Sequence[Row]) -> Column[Row]:
    """A figure of every row, the best one marked."""
    places = decimals(row.mean(name) for row in rows)
    best = best_value(result, name, (row.mean(name) for row in rows))

    def cell(row: Row) -> Cell:
        top = best is not None and row.mean(name) == best
        return Cell(figure_text(result, name, row, places), title=ends(row.figures.get(name), places), best=top)

    return Column(heading(result, name), cell)


def diverged_column() -> Column[Row]:
    """How many of a row's samples diverged; no column where none did."""
    return Column("diverged", lambda row: count(row.diverged) if row.diverged else "")


def diverged(items: Sequence[Row | Arm]) -> list[str]:
    """A warning for every row or arm that has samples which diverged."""
    texts = []
    for item in (item for item in items if item.diverged):
        of = f" of {count(item.draws * item.samples_per_draw)}" if isinstance(item, Row) and item.draws else ""
        text = f"{count(item.diverged)}{of} samples of {item.label} diverged (values that are not finite)"
        texts.append(f"{text}: they count as bad samples in all figures.")
    return texts


def draws_text(rows: Sequence[Row]) -> str:
    """How much was drawn, where all rows agree."""
    draws = {(row.draws, row.samples_per_draw) for row in rows}
    if len(draws) != 1 or not rows[0].draws:
        return ""
    num, size = next(iter(draws))
    return f" {count(num)} draw{'' if num == 1 else 's'} of {count(size)} samples each."


def all_figures(context: Context[Result], rows: Sequence[Row]) -> Details | None:
    """Every figure of every row: a line per figure, so that a figure without a place of its own is seen too."""
    result = context.result
    names = in_order(result, (name for row in rows for name in row.figures))
    places = {name: decimals(row.mean(name) for row in rows) for name in names}

    def column(row: Row) -> Column[str]:
        def cell(name: str) -> Cell:
            value = row.figures.get(name)
            return Cell(plus_minus(value, places[name]), title=ends(value, places[name]))

        return Column(context.palette.name(row.label), cell)

    columns = [Column[str]("figure", lambda name: heading(result, name), False), *map(column, rows)]
    caption = "± is half the 95 % interval over the draws. Arrows: which way is better."
    return details("All figures", table(names, columns, caption))


def extractor_text(extractor: ExtractorFacts | None) -> str:
    """Which features the distances were measured in; empty where there were none."""
    if extractor is None:
        return ""
    text = f"Measured with {extractor.name}, {count(extractor.num_features)} features"
    if extractor.accuracy is not None:
        text += f", {percent(extractor.accuracy)} test accuracy as a classifier"
    return f"{text} (hash {extractor.hash[:16]}). FDs of different extractors or sample counts cannot be compared."


def class_table(context: Context[Result], rows: Sequence[Row]) -> Table | None:
    """Per class and row: share of the samples, agreement with the asked class, FD."""
    kept = [row for row in rows if row.per_class]
    classes = list(dict.fromkeys(item.name for row in kept for item in row.per_class))
    places = decimals(item.fd for row in kept for item in row.per_class)

    def columns(row: Row) -> list[Column[str]]:
        found = {item.name: item for item in row.per_class}
        group = context.palette.name(row.label)
        return [
            Column("share", lambda name: percent(found[name].share) if name in found else DASH, group=group),
            Column("agreement", lambda name: percent(found[name].agreement) if name in found else DASH, group=group),
            Column("FD", lambda name: fixed(found[name].fd, places) if name in found else DASH, group=group),
        ]

    caption = (
        "Share: of all samples, by the extractor’s classifier. Agreement: samples that the classifier gives the class "
        "they were asked for. FD of a class is from few samples, so it is higher than the overall FD and noisier."
    )
    names = Column[str]("class", lambda name: name, False)
    return table(classes, [names, *(column for row in kept for column in columns(row))], caption)


def trusted_table(choice: TrustedChoice, name: str) -> Table | None:
    """The strengths that trusted images chose among."""
    places = decimals(choice.distances.values())
    by_data = "" if choice.by_data is None else f" All data would have chosen w = {strength(choice.by_data)}."
    caption = (
        f"{name}: w = {strength(choice.w)}, by the distance to {count(choice.size)} trusted images; "
        f"chosen in: the share of resamples of them that choose a strength.{by_data}"
    )
    columns = [
        Column[str]("w", lambda w: w),
        Column[str]("distance", lambda w: fixed(choice.distances[w], places)),
        Column[str]("chosen in", lambda w: percent(choice.shares.get(w), 0)),
    ]
    return table(choice.distances, columns, caption)


def reproduce(reproduction: Reproduction) -> list[Block]:
    """What it takes to make the run again."""
    total = reproduction.seconds or 1.0
    stages = table(
        reproduction.stages,
        [
            Column("stage", lambda stage: stage.name, False),
            Column("time", lambda stage: duration(stage.seconds)),
            Column("share", lambda stage: percent(stage.seconds / total)),
        ],
    )
    versions = table(
        reproduction.versions.items(),
        [Column("name", lambda item: item[0], False), Column("version", lambda item: item[1], False)],
    )
    toml = reproduction.config_toml
    return present(
        Code("\n".join(reproduction.commands)) if reproduction.commands else None,
        details("Configuration", Code(toml) if toml else None),
        details("Where the time went", stages),
        details("Versions", versions),
    )
