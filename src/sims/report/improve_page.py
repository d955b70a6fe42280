"""The page of the main job: a model that was improved with its own samples."""

from __future__ import annotations

from collections.abc import Sequence

from sims.report import improve_figures as figures
from sims.report import numbers as say
from sims.report import tables
from sims.report.adapter_blocks import adapter_blocks
from sims.report.blocks import Block, Cell, Column, Fact, Section, Table, Text, details, facts, present, prose, table
from sims.report.context import base_row, called, title
from sims.report.head import Head
from sims.report.improve_figures import Improve
from sims.report.strips import nearest_pairs, sample_grids
from sims.report.tables import MADE_FOR
from sims.results.common import Interval, Row
from sims.results.improve import CacheResult, ImproveResult, Recommendation, SearchResult

MAIN = {"fd": 0, "fd_held_out": 0, "check_fd": 2, "kid_held_out": 1, "precision": 4, "recall": 3}  # others: all figures
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
            scale, by = 100 / theirs.mean, item.difference
            return scale * by.mean, scale * by.low, scale * by.high, True
    if ours.low is None or ours.high is None or not theirs.low or not theirs.high:
        return None
    low, high = 100 * (ours.low / theirs.high - 1), 100 * (ours.high / theirs.low - 1)
    return 100 * (ours.mean / theirs.mean - 1), low, high, False


def improve_head(result: ImproveResult) -> Head:
    """The verdict: the leading method against the base, on the training and on the held-out images."""
    base, leader = base_row(result.rows), leading_row(result)
    by = change(leader, base) if leader else None
    if base is None or leader is None or by is None:
        return Head.of(result, tables.diverged(result.rows), verified=result.verified)
    limits, text = change_interval(result, leader, base, "fd"), ""
    if limits:
        kind = "paired difference" if limits[3] else "the widest the two intervals allow"
        text = f"95 %: {say.signed_percent(limits[1])} to {say.signed_percent(limits[2])} ({kind})"
    tiles = tables.figure_tiles(result, ("fd", "fd_held_out", "precision", "recall"), leader, base)
    budget = f"budget {say.short_count(leader.budget)} images" if leader.budget else ""
    tiles.append(Fact("Strength w", say.strength(leader.w), budget))
    return Head.of(
        result,
        tables.diverged(result.rows),
        big=say.signed_percent(by),
        big_label=f"{title(result, 'fd')}, {called(result, leader.label)} against the base",
        big_interval=text,
        convincing=bool(limits and limits[2] < 0) and result.verified,
        verdict=_verdict(result, leader, base, limits),
        facts=[*tiles, Fact("Saved as improved/", result.improved)] if result.improved else tiles,
        verified=result.verified,
    )


def _verdict(result: ImproveResult, leader: Row, base: Row, limits: Change | None) -> str:
    """One or two sentences: improved, not shown, or worse; and the same for held-out images where they were used."""
    name, tested = called(result, leader.label), change_interval(result, leader, base, "fd_held_out")
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
    shown = "FD falls too" if tested[2] < 0 else "no improvement is shown"
    return f"{first} On test images, which no model has seen, {shown} ({say.signed_percent(tested[0])})."


def improve_table(result: ImproveResult) -> Table | None:
    """The closing table of the terminal."""
    rows, base, best = result.rows, base_row(result.rows), best_row(result.rows)
    places = say.decimals(row.mean(name) for row in rows for name in ("fd", "fd_held_out"))
    kept = ["" if row is base or "fd" not in row.retained else say.percent(row.retained["fd"], 0) for row in rows]
    columns = [
        Column("method", [row.label for row in rows], False),
        Column("w", [say.strength(row.w) for row in rows], drop=5),
        Column("budget", [say.short_count(row.budget) for row in rows], drop=2),
        Column("NFE", [say.short_count(row.nfe) for row in rows]),
        Column(title(result, "fd"), [say.plus_minus(row.figures.get("fd"), places) for row in rows]),
        Column(title(result, "fd_held_out"), [say.fixed(row.mean("fd_held_out"), places) for row in rows]),
        Column(title(result, "precision"), [say.fixed(row.mean("precision"), 3) for row in rows], drop=4),
        Column(title(result, "recall"), [say.fixed(row.mean("recall"), 3) for row in rows], drop=3),
        tables.diverged_column(rows),
        Column("gain", kept, drop=1),
        Column("change", [say.signed_percent(change(row, base)) for row in rows]),
    ]
    least = say.lowest(rows, "fd")
    said = [f"{title(result, 'fd')}: {least}"] if least else []
    for limit in dict.fromkeys(item.max_cost for item in result.recommended):
        best_by = {item.trained: item for item in result.recommended if item.max_cost == limit}
        free, known = best_by.get(False), best_by[True]
        said.append(f"best {_limit(known)}: {known.label}; without training: {free.label if free else 'none'}")
    return table(columns, "\n".join(said), title=result.title, strong=[k for k, row in enumerate(rows) if row is best])


def _results(c: Improve) -> list[Block]:
    result, floor = c.result, c.result.floor
    text = ""
    if floor:
        values = ", ".join(f"{title(result, name)} {say.fixed(value)}" for name, value in floor.values.items())
        text = f"Floor: {values}. {say.sentence(floor.text).rstrip('.')}."
    return present(
        _main_table(c),
        _recommended(c),
        figures.fd_dots(c),
        prose(text),
        prose(tables.extractor_text(result)),
        _comparison_table(c),
        tables.all_figures(c, result.rows),
    )


def _main_table(c: Improve) -> Table | None:
    """Every row of the run: setting, the main figures, change from the base."""
    rows, base, best = c.result.rows, base_row(c.result.rows), best_row(c.result.rows)
    columns = [
        Column("method", [c.cell(row.label, row.note) for row in rows], False),
        Column("w", [say.strength(row.w) for row in rows]),
        Column("budget", [say.short_count(row.budget) for row in rows]),
        Column("NFE", [say.short_count(row.nfe) for row in rows]),
        *(tables.figure_column(c.result, name, rows, drop) for name, drop in MAIN.items()),
        tables.diverged_column(rows),
        Column("change", [say.signed_percent(change(row, base)) for row in rows]),
    ]
    caption = (
        "± is half the 95 % interval (of all figures: on hover). Change: FD against the base. "
        "NFE: network evaluations per sample. Bold: best of the column."
    )
    if any("check_fd" in row.figures for row in rows):
        caption += " Second extractor: features which nothing was chosen with."
    least = say.lowest(rows, "fd")
    caption += tables.draws_text(rows) + (f" FD, as published figures are given: {least}" if least else "")
    return table(columns, caption, strong=[k for k, row in enumerate(rows) if row is best])


def _recommended(c: Improve) -> Table | None:
    """The best within every cost, without training and with it, and how far it is from the base."""
    lines = c.result.recommended
    notes = {row.label: row.note for row in c.result.rows}
    columns = [
        Column(
            "best", [f"{_limit(item)}, {'any method' if item.trained else 'without training'}" for item in lines], False
        ),
        Column("method", [c.cell(item.label, notes.get(item.label, "")) for item in lines], False, key=True),
        Column("NFE", [say.short_count(item.nfe) for item in lines]),
    ]
    for name in dict.fromkeys(name for item in lines for name in item.differences):
        values = [item.differences.get(name) for item in lines]
        places = 3 if name == "memorized" else say.decimals(by.mean for by in values if by)
        columns.append(Column(f"{title(c.result, name)}, change", [_change_cell(by, places) for by in values]))
    caption = (
        "What to use, at which cost, in units of the base’s evaluations; chosen on the selection seeds. The changes "
        "are from the base on fresh seeds, paired by draw, with their 95 % intervals."
    )
    return table(columns, caption)


def _limit(item: Recommendation) -> str:
    return "at any cost" if item.max_cost is None else f"at {item.max_cost:g}× at most"


def _change_cell(by: Interval | None, places: int) -> Cell:
    if by is None:
        return Cell(say.DASH)
    low, high = say.signed(by.low, places), say.signed(by.high, places)
    return Cell(f"{say.signed(by.mean, places)} ({low} to {high})", title=say.ends(by, places))


def _comparison_table(c: Improve) -> Table | None:
    """Pairs of rows: the difference a − b, its interval, and the verdict."""
    items, name = c.result.comparisons, c.palette.name
    places = say.decimals(item.difference.mean for item in items)
    limits = [
        Cell(f"{say.signed(by.low, places)} to {say.signed(by.high, places)}", title=say.ends(by, places))
        for by in (item.difference for item in items)
    ]
    columns = [
        Column("difference", [f"{name(item.a)} − {name(item.b)}" for item in items], False),
        Column("of", [title(c.result, item.figure) for item in items], False),
        Column("mean", [say.signed(item.difference.mean, places) for item in items]),
        Column("95 % interval", limits),
        Column("verdict", [item.verdict for item in items], False),
    ]
    return table(columns, "Paired differences; an interval that includes zero shows no difference.")


def _cost(c: Improve) -> list[Block]:
    """What each method costs per sample and beyond the base's training, and what it gains; what the run spent."""
    rows, base, spent = c.result.rows, base_row(c.result.rows), c.result.spent
    whole = spent.base_training_images if spent else None
    gains = [
        Column(
            f"gain, {title(c.result, name)}", ["" if r is base else say.percent(r.retained.get(name), 0) for r in rows]
        )
        for name in ("fd", "fd_held_out")
    ]
    columns = [
        Column("method", [c.cell(row.label) for row in rows], False),
        Column("NFE", [say.short_count(row.nfe) for row in rows]),
        Column("of the base", [f"{row.nfe / base.nfe:.2f}×" if base and base.nfe else "" for row in rows]),
        Column("s / 1000 samples", [say.fixed(row.seconds_per_1000) for row in rows], drop=1),
        Column("made for", [tables.made_for(row.cost) for row in rows]),
        Column("of base training", [say.percent(row.cost.total / (3 * whole)) if whole else "" for row in rows]),
        *gains,
    ]
    caption = f"Seconds are of the machine that ran this. {MADE_FOR} Its samples and its search are included."
    if any(row.retained for row in rows):
        leader = called(c.result, c.result.leader)
        caption += f" Gain: the improvement on the base in each FD, as a share of what {leader} reaches."
    tiles = []
    if spent:
        tiles = [
            Fact("Base training", say.short_count(spent.base_training_images), "images seen"),
            Fact("Synthesized", say.short_count(spent.synthesized), "images"),
            Fact("Synthesis", say.short_count(spent.synthesis_evaluations), "network evaluations"),
            Fact("Auxiliary training", say.short_count(spent.auxiliary_images), "images seen"),
            Fact("Distillation", say.short_count(spent.distillation_images), "images seen"),
            Fact("Search", say.short_count(spent.search_evaluations), "network evaluations"),
        ]
    said = prose("What the run spent, once:" if tiles else "")
    return present(figures.cost_dots(c), table(columns, caption), said, facts(*tiles))


def _cache(c: Improve, cache: CacheResult) -> list[Block]:
    unit, tried = "evaluations per sample", cache.tried
    tiles = [
        Fact("Base", say.short_count(cache.nfe_base), unit),
        Fact("Guided in full", say.short_count(cache.nfe_full), unit),
        Fact("Guided, cached", say.short_count(cache.nfe_cached), unit),
    ]
    for name, share in cache.retained.items():
        tiles.append(Fact("Gain kept", say.percent(share, 0), f"of the improvement in {title(c.result, name)}"))
    cheapest = f"Cheapest: {cache.cheapest} ({say.short_count(cache.cheapest_nfe)} {unit})." if cache.cheapest else ""
    columns = [
        Column("of", [c.palette.name(item.method) for item in tried], False),
        Column("solver", [item.solver for item in tried], False),
        Column("steps", [say.count(item.steps) for item in tried]),
        Column("w", [say.strength(item.w) if item.w else "" for item in tried]),
        Column("corrections", [say.count(item.refreshes) for item in tried]),
        Column("NFE", [say.short_count(item.nfe) for item in tried]),
        Column("FD to training data", [say.fixed(item.fd) for item in tried]),
        Column("gain kept", [say.percent(item.retained) for item in tried]),
    ]
    caption = "Tried on the selection seeds, of which some scatter is left in the last two columns."
    return present(
        facts(*tiles),
        figures.cache_strip(c, cache),
        prose(cheapest),
        details("Other samplers that were tried", table(columns, caption)),
        Text(f"Solver: {cache.solver}. The levels are fixed before sampling, by noise level alone."),
    )


def _memorization(c: Improve) -> list[Block]:
    rows, leader = c.result.rows, leading_row(c.result)
    columns = [
        Column("method", [c.cell(row.label) for row in rows], False),
        Column("near share", [say.percent(row.mean("memorized"), 2) for row in rows]),
        Column("distance ratio", [say.fixed(row.mean("distance_ratio"), 3) for row in rows]),
    ]
    caption = (
        "Distance ratio: median distance to the nearest training image, samples over held-out images; "
        "1 is as far as held-out images are, less is nearer."
    )
    pairs = nearest_pairs(c.pictures, c.palette, leader.label, leader.w) if leader else None
    return present(figures.memorization_dots(c), pairs, table(columns, caption))


def _classes(c: Improve) -> Table | None:
    """Per class: its shares of the data and of what is drawn; each row's share, agreement with the class asked, FD."""
    rows = [row for row in c.result.rows if row.per_class]
    places = say.decimals(item.fd for row in rows for item in row.per_class)
    data = c.result.data
    names = [item.name for item in rows[0].per_class] if rows else data.class_names if data.drawn_shares else ()
    columns = [
        Column("class", names, False),
        Column("training data", [say.percent(share) for share in data.class_shares if names]),
        Column("drawn", [say.percent(share) for share in data.drawn_shares if names]),
    ]
    for row in rows:
        items, group = row.per_class, c.palette.name(row.label)
        columns.append(Column("share", [say.percent(item.share) for item in items], group=group))
        columns.append(Column("agreement", [say.percent(item.agreement) for item in items], group=group))
        columns.append(Column("FD", [say.fixed(item.fd, places) for item in items], group=group))
    caption = "Drawn: how often a class is asked for. " if any(data.drawn_shares) else ""
    caption += "Share: of all samples, by the extractor’s classifier. " if rows else ""
    if any(item.agreement is not None for row in rows for item in row.per_class):
        caption += "Agreement: samples that the classifier gives the class they were asked for. "
    if any(item.fd is not None for row in rows for item in row.per_class):
        caption += "FD of a class is from few samples, so it is higher than the overall FD and noisier."
    return table(columns, caption)


def _rounds(c: Improve) -> list[Block]:
    """What each round reached, and whether it was kept."""
    lines = [(item, row, row is item.rows[0]) for item in c.result.rounds for row in item.rows]
    places = say.decimals(row.mean("fd") for _, row, _ in lines)
    reached = [
        Column(title(c.result, name), [say.plus_minus(row.figures.get(name), places) for _, row, _ in lines])
        for name in ("fd", "fd_held_out")
    ]
    verdicts = ["" if not first else "kept" if item.accepted else "not kept" for item, _, first in lines]
    columns = [
        Column("round", [str(item.round) if first else "" for item, _, first in lines], False),
        Column("method", [c.cell(row.label) for _, row, _ in lines], False),
        Column("w", [say.strength(row.w) for _, row, _ in lines]),
        *reached,
        Column("verdict", verdicts, False),
        Column("reason", [item.reason if first else "" for item, _, first in lines], False),
    ]
    return present(figures.rounds_plot(c), table(columns))


def _search(c: Improve, search: SearchResult) -> list[Block]:
    chosen, cells = search.chosen, figures.scored(search)
    tiles = facts(
        Fact("Samples", say.count(sum(found.samples for found in chosen.values())), "drawn in all"),
        Fact("Full grid", say.count(search.grid_samples), "samples it would take: every budget × 13 w × 5000"),
        Fact("Scores taken", say.count(len(cells))),
    )
    edge = "The best setting lay on the edge of the grid, so the search was extended beyond it."
    columns = [
        Column("method", [c.cell(method) for method in chosen], False),
        Column("w", [say.strength(found.w) for found in chosen.values()]),
        Column("budget", [say.short_count(found.budget or None) for found in chosen.values()]),
        Column("beside w", [_extra(found.extra_name, found.extra) for found in chosen.values()], False),
        Column("samples drawn", [say.count(found.samples) for found in chosen.values()]),
        Column("network evaluations", [say.short_count(found.evaluations or None) for found in chosen.values()]),
    ]
    trusted = [
        tables.trusted_table(found.trusted, c.palette.name(name)) for name, found in chosen.items() if found.trusted
    ]
    return present(
        tiles,
        prose(edge if search.extended else ""),
        table(columns, "What was chosen, and what the choice took."),
        details("Strengths by trusted images", *trusted),
        details("Every score of the search", _cells_table(c, search)),
    )


def _extra(name: str, value: float | None) -> str:
    """The setting beside w."""
    return "" if value is None else f"{name} {value:g}"


def _cells_table(c: Improve, search: SearchResult) -> Table | None:
    """Every setting of the search: a line per method, budget and number of samples, a column per w."""
    scores: dict[tuple[str, int, str, int], dict[float, float]] = {}
    for cell in figures.scored(search):
        found = search.chosen.get(cell.method)
        extra = _extra(found.extra_name if found else "", cell.extra)
        scores.setdefault((cell.method, cell.budget or 0, extra, cell.n), {})[cell.w] = cell.fd or 0.0
    lines = [scores[key] for key in sorted(scores)]
    places = say.decimals(fd for line in lines for fd in line.values())
    columns = [
        Column("method", [c.cell(method) for method, *_ in sorted(scores)], False),
        Column("budget", [say.short_count(budget or None) for _, budget, *_ in sorted(scores)], key=True),
        Column("beside w", [extra for *_, extra, _ in sorted(scores)], False, key=True),
        Column("samples", [say.short_count(n) for *_, n in sorted(scores)], key=True),
    ]
    for w in sorted({w for line in lines for w in line}):
        best = [len(line) > 1 and line.get(w) == min(line.values()) for line in lines]
        values = [Cell(say.fixed(line.get(w), places), best=low) for line, low in zip(lines, best)]
        columns.append(Column(f"w\u00a0=\u00a0{say.strength(w)}", values))
    caption = "FD to the training images. Bold: lowest of the line. Different numbers of samples do not compare."
    return table(columns, caption)


def improve_sections(c: Improve) -> list[Section]:
    """Every section of the page, in order; those without blocks are left out."""
    result = c.result
    labels = [row.label for row in result.rows]
    return [
        Section("samples", "Samples", present(sample_grids(c.pictures, c.palette, labels))),
        Section("results", "Results", _results(c)),
        Section("adapter", "The network on real pictures", adapter_blocks(c.palette, result.adapter)),
        Section("strength", "Strength and budget", present(figures.fd_against_w(c), figures.fd_against_budget(c))),
        Section("cost", "Cost", _cost(c)),
        Section("cache", "Cached guidance", _cache(c, result.cache) if result.cache else []),
        Section("memorization", "Memorization", _memorization(c)),
        Section("classes", "Classes", present(_classes(c))),
        Section("rounds", "Rounds", _rounds(c)),
        Section("search", "Search", _search(c, result.search) if result.search else []),
        Section("reproduce", "Reproduce", tables.reproduce(result.reproduction)),
    ]
