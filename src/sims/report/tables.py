"""The tables and passages that several pages share; each is None where there is nothing to show."""

from __future__ import annotations

from collections.abc import Sequence

from sims.report import numbers as say
from sims.report.blocks import Block, Cell, Column, Details, Fact, Table, Text, details, present, table
from sims.report.context import Context, facts_of, heading, in_order, title
from sims.results.common import Cost, ExtractorFacts, Reproduction, Result, Row, TrustedChoice
from sims.results.loop import Arm

MADE_FOR = "Made for: what making the sampler cost beyond the base, in network evaluations; a training image is three."


def made_for(cost: Cost) -> Cell:
    """What something cost, in network evaluations; of what it is made up on hover."""
    names = ("training images", cost.images), ("network evaluations", cost.evaluations), ("labelled", cost.labelled)
    text = ", ".join(f"{say.count(number)} {name}" for name, number in names if number)
    return Cell(say.short_count(cost.total), title=text)


def figure_column(result: Result, figure: str, rows: Sequence[Row], drop: int = 0) -> Column:
    """A figure of every row, the best one marked; half the interval beside distances, on hover for all."""
    facts, means = facts_of(result, figure), [row.mean(figure) for row in rows]
    known, places = [mean for mean in means if mean is not None], say.decimals(means)
    best = None if facts.better == "neither" or not known else (min if facts.better == "lower" else max)(known)

    def cell(row: Row) -> Cell:
        value, mean = row.figures.get(figure), row.mean(figure)
        short = facts.kind != "distance" or figure.startswith("check_")
        text = say.fixed(mean, places) if short else say.plus_minus(value, places)
        text = say.short_count(mean) if mean is not None and abs(mean) >= 100_000 else text
        return Cell(text, title=say.ends(value, places), best=best is not None and mean == best)

    return Column(heading(result, figure), [cell(row) for row in rows], drop=drop)


def figure_tiles(result: Result, figures: Sequence[str], ours: Row, base: Row) -> list[Fact]:
    """Base → ours, one tile per figure, and evaluations."""
    tiles = []
    for figure in figures:
        after, before = ours.figures.get(figure), base.figures.get(figure)
        if after and before:
            places = say.decimals([after.mean, before.mean])
            half = "" if after.half is None else f"± {say.fixed(after.half, places)}, "
            text = say.fixed(after.mean, places)
            tiles.append(Fact(title(result, figure), text, f"{half}base {say.fixed(before.mean, places)}"))
    return [*tiles, Fact("Evaluations", say.short_count(ours.nfe), f"per sample, base {say.short_count(base.nfe)}")]


def diverged_column(items: Sequence[Row] | Sequence[Arm]) -> Column:
    """How many samples diverged; empty where none did."""
    return Column("diverged", [say.count(item.diverged) if item.diverged else "" for item in items])


def diverged(items: Sequence[Row] | Sequence[Arm]) -> list[str]:
    """A warning for every row or arm that has samples which diverged."""
    texts = []
    for item in (item for item in items if item.diverged):
        of = f" of {say.count(item.draws * item.samples_per_draw)}" if isinstance(item, Row) and item.draws else ""
        text = f"{say.count(item.diverged)}{of} samples of {item.label} diverged (values that are not finite)"
        texts.append(f"{text}: they count as bad samples in all figures.")
    return texts


def draws_text(rows: Sequence[Row]) -> str:
    """How much was drawn, where all rows agree."""
    draws = {(row.draws, row.samples_per_draw) for row in rows}
    if len(draws) != 1 or not rows[0].draws:
        return ""
    num, size = next(iter(draws))
    return f" {say.count(num)} draw{'' if num == 1 else 's'} of {say.count(size)} samples each."


def all_figures(context: Context[Result], rows: Sequence[Row]) -> Details | None:
    """Every figure of every row: a line per figure, so that a figure without a place of its own is seen too."""
    result = context.result
    places = {
        name: say.decimals(row.mean(name) for row in rows)
        for name in in_order(result, (name for row in rows for name in row.figures))
    }

    def cell(row: Row, name: str) -> Cell:
        value = row.figures.get(name)
        return Cell(say.plus_minus(value, places[name]), title=say.ends(value, places[name]))

    columns = [Column(context.palette.name(row.label), [cell(row, name) for name in places]) for row in rows]
    names = Column("figure", [heading(result, name) for name in places], False)
    caption = "± is half the 95 % interval over the draws. Arrows: which way is better."
    return details("All figures", table([names, *columns], caption))


def extractor_text(result: Result) -> str:
    """Which features the distances were measured in; empty where there were none."""
    if result.extractor is None:
        return ""
    text = f"Measured with {_extractor(result.extractor)}"
    if result.second_extractor is not None:
        text += f"; a second time, in features that nothing was chosen with, with {_extractor(result.second_extractor)}"
    return f"{text}. FDs of different extractors or sample counts cannot be compared."


def _extractor(facts: ExtractorFacts) -> str:
    text = f"{facts.name}, {say.count(facts.num_features)} features"
    if facts.accuracy is not None:
        text += f", {say.percent(facts.accuracy)} test accuracy as a classifier"
    return f"{text} (hash {facts.hash[:16]})"


def trusted_table(choice: TrustedChoice, name: str) -> Table | None:
    """The strengths that trusted images chose among."""
    places = say.decimals(choice.distances.values())
    by_data = "" if choice.by_data is None else f" All data would have chosen w = {say.strength(choice.by_data)}."
    caption = (
        f"{name}: w = {say.strength(choice.w)}, by the distance to {say.count(choice.size)} trusted images; "
        f"chosen in: the share of resamples of them that choose a strength.{by_data}"
    )
    columns = [
        Column("w", list(choice.distances)),
        Column("distance", [say.fixed(distance, places) for distance in choice.distances.values()]),
        Column("chosen in", [say.percent(choice.shares.get(w), 0) for w in choice.distances]),
    ]
    return table(columns, caption)


def reproduce(reproduction: Reproduction) -> list[Block]:
    """What it takes to make the run again."""
    stages, versions = reproduction.stages, reproduction.versions
    times = [
        Column("stage", [stage.name for stage in stages], False),
        Column("time", [say.duration(stage.seconds) for stage in stages]),
        Column("share", [say.percent(stage.seconds / (reproduction.seconds or 1.0)) for stage in stages]),
    ]
    named = [Column("name", list(versions), False), Column("version", list(versions.values()), False)]
    code = [
        Text(text, "code") if text else None for text in ("\n".join(reproduction.commands), reproduction.config_toml)
    ]
    return present(
        code[0],
        details("Configuration", code[1]),
        details("Where the time went", table(times)),
        details("Versions", table(named)),
    )
