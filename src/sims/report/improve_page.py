"""The page of the main job: a model that was improved with its own samples."""

from __future__ import annotations

from collections.abc import Sequence

from sims.report import figures
from sims.report.blocks import (
    Block,
    Cell,
    Column,
    Fact,
    Prose,
    Section,
    Table,
    details,
    facts,
    present,
    prose,
    table,
)
from sims.report.context import figure_facts
from sims.report.figures import Improve, base_row
from sims.report.head import Head
from sims.report.numbers import (
    DASH,
    count,
    decimals,
    ends,
    fixed,
    lowest,
    percent,
    plus_minus,
    sentence,
    short_count,
    signed,
    signed_percent,
    strength,
)
from sims.report.strips import nearest_pairs, sample_grids
from sims.report.tables import (
    MADE_FOR,
    all_figures,
    class_table,
    diverged,
    diverged_column,
    draws_text,
    extractor_text,
    figure_column,
    made_for,
    reproduce,
    trusted_table,
)
from sims.results.common import Comparison, Floor, Row
from sims.results.improve import CacheResult, Chosen, ImproveResult, Round, SearchResult

MAIN = ("fd", "fd_held_out", "check_fd", "kid_held_out", "precision", "recall")  # the others: all figures
Change = tuple[float, float, float, bool]  # mean, low and high in percent; whether the difference is paired


def best_row(rows: Sequence[Row]) -> Row | None:
    """The row of lowest FD, the base included; None where nothing was measured."""
    return min((row for row in rows if "fd" in row.figures), key=lambda row: row.figures["fd"].mean, default=None)


def leading_row(result: ImproveResult) -> Row | None:
    """What the claim is about: the leading method's row, whatever else scored lower; the best where it was not run."""
    base = base_row(result.rows)
    return result.row(result.leader) or best_row([row for row in result.rows if row is not base])


def change(row: Row, base: Row | None) -> float | None:
    """Change of FD from the base, in percent; None for the base itself and where a figure is missing."""
    ours, theirs = row.mean("fd"), base.mean("fd") if base else None
    return None if row is base or ours is None or not theirs else 100 * (ours / theirs - 1)


def change_interval(result: ImproveResult, row: Row, base: Row, figure: str) -> Change | None:
    """Change from the base in percent with its limits; without a paired comparison, the widest that the two allow."""
    ours, theirs = row.figures.get(figure), base.figures.get(figure)
    if ours is None or theirs is None or theirs.mean <= 0:
        return None
    for item in result.comparisons:
        if (item.a, item.b, item.figure) == (row.label, base.label, figure):
            mean, low, high = (
                100 * value / theirs.mean for value in (item.difference.mean, item.difference.low, item.difference.high)
            )
            return mean, low, high, True
    if ours.low is None or ours.high is None or not theirs.low or not theirs.high:
        return None
    low, high = 100 * (ours.low / theirs.high - 1), 100 * (ours.high / theirs.low - 1)
    return 100 * (ours.mean / theirs.mean - 1), low, high, False


def improve_head(result: ImproveResult) -> Head:
    """The verdict: the leading method against the base, on the training and on the held-out images."""
    base, leader = base_row(result.rows), leading_row(result)
    said = diverged(result.rows)
    by = change(leader, base) if leader else None
    if base is None or leader is None or by is None:
        return Head.of(result, said, verified=result.verified)
    limits = change_interval(result, leader, base, "fd")
    text = ""
    if limits:
        kind = "paired difference" if limits[3] else "the widest the two intervals allow"
        text = f"95 %: {signed_percent(limits[1])} to {signed_percent(limits[2])} ({kind})"
    return Head.of(
        result,
        said,
        big=signed_percent(by),
        big_label=f"{figure_facts(result, 'fd').title}, {leader.label} against the base",
        big_interval=text,
        convincing=bool(limits and limits[2] < 0) and result.verified,
        verdict=_verdict(result, leader, base, limits),
        facts=_head_facts(result, leader, base),
        verified=result.verified,
    )


def _verdict(result: ImproveResult, leader: Row, base: Row, limits: Change | None) -> str:
    """One or two sentences: improved, not shown, or worse; and the same for held-out images where they were used."""
    name, tested = leader.label, change_interval(result, leader, base, "fd_held_out")
    if leader.figures["fd"].mean >= base.figures["fd"].mean:
        return "No method improved on the base." if best_row(result.rows) is base else f"{name} does not improve."
    if limits is None:
        first = f"{name} scores lower than the base; with a single draw, how far this is chance is not known."
    elif limits[2] >= 0:
        first = f"{name} scores lower, but the 95 % interval includes zero: no improvement is shown."
    elif result.verified:
        first = f"{name} improves on the base: the whole 95 % interval lies below zero."
    else:
        first = f"{name} scores lower and the 95 % interval lies below zero, but the run did not verify it."
    if tested is None:
        return first
    if tested[2] < 0:
        return f"{first} On test images, which no model has seen, FD falls too ({signed_percent(tested[0])})."
    return f"{first} On test images, which no model has seen, no improvement is shown ({signed_percent(tested[0])})."


def _head_facts(result: ImproveResult, leader: Row, base: Row) -> list[Fact]:
    """Base → leading method, one tile per figure; and what was saved."""
    tiles = []
    for name in ("fd", "fd_held_out", "precision", "recall"):
        ours, theirs = leader.figures.get(name), base.figures.get(name)
        if ours and theirs:
            places = decimals([ours.mean, theirs.mean])
            half = "" if ours.half is None else f"± {fixed(ours.half, places)}, "
            title = figure_facts(result, name).title
            tiles.append(Fact(title, fixed(ours.mean, places), f"{half}base {fixed(theirs.mean, places)}"))
    tiles.append(Fact("Evaluations", short_count(leader.nfe), f"per sample, base {short_count(base.nfe)}"))
    budget = f"budget {short_count(leader.budget)} images" if leader.budget else ""
    tiles.append(Fact("Strength w", strength(leader.w), budget))
    if result.improved:
        tiles.append(Fact("Saved as improved/", result.improved))
    return tiles


def improve_table(result: ImproveResult) -> Table | None:
    """The closing table of the terminal."""
    rows, base, best = result.rows, base_row(result.rows), best_row(result.rows)
    places = decimals(row.mean(name) for row in rows for name in ("fd", "fd_held_out"))

    def title(name: str) -> str:
        return figure_facts(result, name).title

    def kept(row: Row) -> str:
        return "" if row is base or "fd" not in row.retained else percent(row.retained["fd"], 0)

    columns: list[Column[Row]] = [
        Column("method", lambda row: row.label, False),
        Column("w", lambda row: strength(row.w), drop=5),
        Column("budget", lambda row: short_count(row.budget), drop=2),
        Column("NFE", lambda row: short_count(row.nfe)),
        Column(title("fd"), lambda row: plus_minus(row.figures.get("fd"), places)),
        Column(title("fd_held_out"), lambda row: fixed(row.mean("fd_held_out"), places)),
        Column(title("precision"), lambda row: fixed(row.mean("precision"), 3), drop=4),
        Column(title("recall"), lambda row: fixed(row.mean("recall"), 3), drop=3),
        diverged_column(),
        Column("gain", kept, drop=1),
        Column("change", lambda row: signed_percent(change(row, base))),
    ]
    least = lowest(rows, "fd")
    caption = f"{title('fd')}: {least}" if least else ""
    strong = [place for place, row in enumerate(rows) if row is best]
    return table(rows, columns, caption, title=result.title, strong=strong)


def _results(c: Improve) -> list[Block]:
    result, rows = c.result, c.result.rows
    comparisons = _comparison_table(c)
    return present(
        _main_table(c),
        figures.fd_dots(c),
        prose(_floor_text(c)),
        prose(extractor_text(result.extractor)),
        comparisons,
        all_figures(c, rows),
    )


def _main_table(c: Improve) -> Table | None:
    """Every row of the run: setting, the main figures, change from the base."""
    result, rows = c.result, c.result.rows
    base, best = base_row(rows), best_row(rows)
    columns = [
        Column[Row]("method", lambda row: c.name(row, row.note), False),
        Column[Row]("w", lambda row: strength(row.w)),
        Column[Row]("budget", lambda row: short_count(row.budget)),
        Column[Row]("NFE", lambda row: short_count(row.nfe)),
        *(figure_column(result, name, rows) for name in MAIN),
        diverged_column(),
        Column[Row]("change", lambda row: signed_percent(change(row, base))),
    ]
    caption = (
        "± is half the 95 % interval (of all figures: on hover). Change: FD against the base. "
        "NFE: network evaluations per sample. Bold: best of the column."
    )
    if any("check_fd" in row.figures for row in rows):
        caption += " Check: in the features of a second extractor, which nothing was chosen with."
    caption += draws_text(rows)
    least = lowest(rows, "fd")
    caption += f" FD, as published figures are given: {least}" if least else ""
    return table(rows, columns, caption, strong=[place for place, row in enumerate(rows) if row is best])


def _floor_text(c: Improve) -> str:
    floor: Floor | None = c.result.floor
    if floor is None:
        return ""
    values = [f"{figure_facts(c.result, name).title} {fixed(value)}" for name, value in floor.values.items()]
    return f"Floor: {', '.join(values)}. {sentence(floor.text).rstrip('.')}."


def _comparison_table(c: Improve) -> Table | None:
    """Pairs of rows: the difference a − b, its interval, and the verdict."""
    items = c.result.comparisons
    places = decimals(item.difference.mean for item in items)

    def interval(item: Comparison) -> Cell:
        low, high = item.difference.low, item.difference.high
        return Cell(f"{signed(low, places)} to {signed(high, places)}", title=ends(item.difference, places))

    columns: list[Column[Comparison]] = [
        Column("difference", lambda item: f"{c.palette.name(item.a)} − {c.palette.name(item.b)}", False),
        Column("of", lambda item: figure_facts(c.result, item.figure).title, False),
        Column("mean", lambda item: signed(item.difference.mean, places)),
        Column("95 % interval", interval),
        Column("verdict", lambda item: item.verdict, False),
    ]
    return table(items, columns, "Paired differences; an interval that includes zero shows no difference.")


def _cost(c: Improve) -> list[Block]:
    """What each method costs per sample and beyond the base's training, and what it gains; what the run spent."""
    rows, base, spent = c.result.rows, base_row(c.result.rows), c.result.spent
    whole = spent.base_training_images if spent else None

    def gain(name: str) -> Column[Row]:
        title = f"gain, {figure_facts(c.result, name).title}"
        return Column(title, lambda row: DASH if row is base else percent(row.retained.get(name), 0))

    columns = [
        Column[Row]("method", c.name, False),
        Column[Row]("NFE", lambda row: short_count(row.nfe)),
        Column[Row]("of the base", lambda row: f"{row.nfe / base.nfe:.2f}×" if base and base.nfe else DASH),
        Column[Row]("s / 1000 samples", lambda row: fixed(row.seconds_per_1000)),
        Column[Row]("made for", lambda row: made_for(row.cost)),
        Column[Row]("of base training", lambda row: percent(row.cost.total / (3 * whole)) if whole else DASH),
        *map(gain, ("fd", "fd_held_out")),
    ]
    caption = f"Seconds are of the machine that ran this. {MADE_FOR} Its samples and its search are included."
    if any(row.retained for row in rows):
        caption += f" Gain: the improvement on the base in each FD, as a share of what {c.result.leader} reaches."
    known = (
        (
            Fact("Base training", short_count(spent.base_training_images), "images seen"),
            Fact("Synthesized", short_count(spent.synthesized), "images"),
            Fact("Synthesis", short_count(spent.synthesis_evaluations), "network evaluations"),
            Fact("Auxiliary training", short_count(spent.auxiliary_images), "images seen"),
            Fact("Distillation", short_count(spent.distillation_images), "images seen"),
            Fact("Search", short_count(spent.search_evaluations), "network evaluations"),
        )
        if spent
        else ()
    )
    said = Prose("What the run spent, once:") if spent else None
    return present(figures.cost_dots(c), table(rows, columns, caption), said, facts(*known))


def _cache(c: Improve, cache: CacheResult) -> list[Block]:
    unit = "evaluations per sample"
    tiles = [
        Fact("Base", short_count(cache.nfe_base), unit),
        Fact("Guided in full", short_count(cache.nfe_full), unit),
        Fact("Guided, cached", short_count(cache.nfe_cached), unit),
    ]
    for name, share in cache.retained.items():
        tiles.append(
            Fact("Gain kept", percent(share, 0), f"of the improvement in {figure_facts(c.result, name).title}")
        )
    cheapest = f"Cheapest: {cache.cheapest} ({short_count(cache.cheapest_nfe)} {unit})." if cache.cheapest else ""
    tried = table(
        cache.tried,
        [
            Column("solver", lambda item: item.solver, False),
            Column("steps", lambda item: count(item.steps)),
            Column("corrections", lambda item: count(item.refreshes)),
            Column("NFE", lambda item: short_count(item.nfe)),
            Column("gain kept", lambda item: percent(item.retained)),
        ],
        "Tried on the selection seeds, of which some scatter is left in the last column.",
    )
    solver = f"Solver: {cache.solver}. The levels are fixed before sampling, by noise level alone."
    return present(
        facts(*tiles),
        figures.cache_strip(c, cache),
        prose(cheapest),
        details("Cheaper samplers that were tried", tried),
        Prose(solver),
    )


def _memorization(c: Improve) -> list[Block]:
    leader = leading_row(c.result) or best_row(c.result.rows)
    columns = [
        Column[Row]("method", c.name, False),
        Column[Row]("near share", lambda row: percent(row.mean("memorized"), 2)),
        Column[Row]("distance ratio", lambda row: fixed(row.mean("distance_ratio"), 3)),
    ]
    caption = (
        "Distance ratio: median distance to the nearest training image, samples over held-out images; "
        "1 is as far as held-out images are, less is nearer."
    )
    return present(
        figures.memorization_dots(c),
        nearest_pairs(c.pictures, c.palette, leader.label, leader.w) if leader else None,
        table(c.result.rows, columns, caption),
    )


def _rounds(c: Improve) -> list[Block]:
    """What each round reached, and whether it was kept."""
    lines: list[tuple[Round, Row]] = [(item, row) for item in c.result.rounds for row in item.rows]
    places = decimals(row.mean("fd") for _, row in lines)

    def first(line: tuple[Round, Row], text: str) -> str:
        return text if line[1] is line[0].rows[0] else ""

    def figure(name: str) -> Column[tuple[Round, Row]]:
        title = figure_facts(c.result, name).title
        return Column(title, lambda line: plus_minus(line[1].figures.get(name), places))

    columns: list[Column[tuple[Round, Row]]] = [
        Column("round", lambda line: first(line, str(line[0].round)), False),
        Column("method", lambda line: c.name(line[1]), False),
        Column("w", lambda line: strength(line[1].w)),
        *map(figure, ("fd", "fd_held_out")),
        Column("verdict", lambda line: first(line, "kept" if line[0].accepted else "not kept"), False),
        Column("reason", lambda line: first(line, line[0].reason), False),
    ]
    return present(figures.rounds_plot(c), table(lines, columns))


def _search(c: Improve, search: SearchResult) -> list[Block]:
    cells, name = figures.scored(search), c.palette.name
    tiles = facts(
        Fact("Samples", count(sum(chosen.samples for chosen in search.chosen.values())), "drawn in all"),
        Fact("Full grid", count(search.grid_samples), "samples it would take: every budget × 13 w × 5000"),
        Fact("Scores taken", count(len(cells))),
    )
    edge = "The best setting lay on the edge of the grid, so the search was extended beyond it."
    columns: list[Column[tuple[str, Chosen]]] = [
        Column("method", lambda item: Cell(name(item[0]), swatch=c.palette[item[0]].variable), False),
        Column("w", lambda item: strength(item[1].w)),
        Column("budget", lambda item: short_count(item[1].budget or None)),
        Column("samples drawn", lambda item: count(item[1].samples)),
        Column("network evaluations", lambda item: short_count(item[1].evaluations or None)),
    ]
    trusted = [trusted_table(item.trusted, name(method)) for method, item in search.chosen.items() if item.trusted]
    return present(
        tiles,
        prose(edge if search.extended else ""),
        table(search.chosen.items(), columns, "What was chosen, and what the choice took."),
        details("Strengths by trusted images", *trusted),
        details("Every score of the search", _cells_table(c, search)),
    )


def _cells_table(c: Improve, search: SearchResult) -> Table | None:
    """Every setting of the search: a line per method, budget and number of samples, a column per w."""
    Line = tuple[str, int, int]
    lines: dict[Line, dict[float, float]] = {}
    for cell in figures.scored(search):
        lines.setdefault((cell.method, cell.budget or 0, cell.n), {})[cell.w] = cell.fd or 0.0
    places = decimals(fd for found in lines.values() for fd in found.values())

    def column(w: float) -> Column[Line]:
        def cell(line: Line) -> Cell:
            value, low = lines[line].get(w), min(lines[line].values())
            return Cell(fixed(value, places), best=len(lines[line]) > 1 and value == low)

        return Column(f"w\u00a0=\u00a0{strength(w)}", cell)

    columns: list[Column[Line]] = [
        Column("method", lambda line: Cell(c.palette.name(line[0]), swatch=c.palette[line[0]].variable), False),
        Column("budget", lambda line: short_count(line[1] or None)),
        Column("samples", lambda line: short_count(line[2])),
        *(column(w) for w in sorted({w for found in lines.values() for w in found})),
    ]
    caption = "FD to the training images. Bold: lowest of the line. Different numbers of samples do not compare."
    return table(sorted(lines), columns, caption)


def improve_sections(c: Improve) -> list[Section]:
    """Every section of the page, in order; those without blocks are left out."""
    result = c.result
    labels = [row.label for row in result.rows]
    return [
        Section("samples", "Samples", present(sample_grids(c.pictures, c.palette, labels))),
        Section("results", "Results", _results(c)),
        Section("strength", "Strength and budget", present(figures.fd_against_w(c), figures.fd_against_budget(c))),
        Section("cost", "Cost", _cost(c)),
        Section("cache", "Cached guidance", _cache(c, result.cache) if result.cache else []),
        Section("memorization", "Memorization", _memorization(c)),
        Section("classes", "Classes", present(class_table(c, result.rows))),
        Section("rounds", "Rounds", _rounds(c)),
        Section("search", "Search", _search(c, result.search) if result.search else []),
        Section("reproduce", "Reproduce", reproduce(result.reproduction)),
    ]
