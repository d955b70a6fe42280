"""The tables of the page, from the summary; each returns None where there is nothing to show."""

from __future__ import annotations

from typing import Any

from sims.report.blocks import Cell, Column, Fact, Table
from sims.report.numbers import (
    DASH,
    count,
    decimals,
    duration,
    fixed,
    lowest,
    percent,
    plus_minus,
    short_count,
    signed_percent,
    strength,
)
from sims.report.palette import Palette
from sims.report.plots import search_cells
from sims.report.record import Interval, Record, Row, base_row, best_row, change, interval, look, mean, number


def main_table(record: Record, palette: Palette) -> Table | None:
    """Every row of the run: setting, FD, precision, recall, change from the base."""
    rows = record.rows
    if not rows:
        return None
    base, best = base_row(rows), best_row(rows)
    metrics = (
        ("fd", "FD train", -1),
        ("fd_held_out", "FD test", -1),
        ("check_fd", "FD check", -1),
        ("kid_held_out", "KID test", -1),
        ("precision", "precision", 1),
        ("recall", "recall", 1),
    )
    used = [item for item in metrics if any(mean(row, item[0]) is not None for row in rows)]
    places = {metric: decimals([mean(row, metric) for row in rows]) for metric, _, _ in used}
    tops = {
        metric: max(sign * (mean(row, metric) or 0) for row in rows if mean(row, metric) is not None)
        for metric, _, sign in used
    }
    columns = [Column("method", False), *map(Column, ("w", "budget", "NFE")), *(Column(title) for _, title, _ in used)]
    cells = []
    for row in rows:
        line = [_method_cell(row, palette, str(row.get("note") or "")), Cell(strength(row.get("w")))]
        line.append(Cell(short_count(row.get("budget"))))
        line.append(Cell(short_count(row.get("nfe"))))
        for metric, _, sign in used:
            value = interval(row.get(metric))
            top = value is not None and sign * value.mean == tops[metric]
            line.append(
                Cell(_figure(value, metric, places[metric]), title=_ends(row, metric, places[metric]), best=top)
            )
        cells.append([*line, Cell(signed_percent(change(row, base)))])
    strong = frozenset(index for index, row in enumerate(rows) if row is best)
    return Table([*columns, Column("change")], cells, _main_caption(rows), strong=strong)


def _figure(value: Interval | None, metric: str, places: int) -> str:
    """Distances with half their interval; the rest, to keep the table narrow, without (it is shown on hover)."""
    if metric.startswith("fd_"):
        return plus_minus(value, places)
    if metric == "kid_held_out" and value is not None and abs(value.mean) >= 1000:
        return short_count(value.mean)
    return fixed(None if value is None else value.mean, places)


def _retained(row: Row, metric: str) -> float | None:
    """The share of the gain of sims over the base that a row reaches."""
    found = row.get("retained")
    return number(found.get(metric)) if isinstance(found, dict) else None


def _main_caption(rows: list[Row]) -> str:
    text = (
        "± is half the 95 % interval (of all figures: on hover). Change: FD train against the base. "
        "NFE: network evaluations per sample. Bold: best of the column."
    )
    if any(mean(row, "check_fd") is not None for row in rows):
        text += " FD check: FD train in the features of a second extractor, which nothing was chosen with."
    draws = {(row.get("draws"), row.get("samples_per_draw")) for row in rows}
    if len(draws) == 1 and None not in next(iter(draws)):
        num, size = next(iter(draws))
        text += f" {count(num)} draw{'' if num == 1 else 's'} of {count(size)} samples each."
    least = lowest(rows, "fd")
    return f"{text} FD train, as published figures are given: {least}" if least else text


def _method_cell(row: Row, palette: Palette, note: str = "") -> Cell:
    return Cell(str(row.get("label") or row.get("method")), note=note, swatch=palette[look(row)].variable)


def _ends(row: Row, metric: str, places: int) -> str:
    value = interval(row.get(metric))
    if value is None or value.low is None:
        return ""
    return f"95 % interval {fixed(value.low, places)} to {fixed(value.high, places)}"


def comparison_table(record: Record) -> Table | None:
    """Pairs of rows: the difference a − b, its interval, and the verdict."""
    items = [item for item in record.items("comparisons") if isinstance(item, dict)]
    if not items:
        return None
    found = [interval(item.get("difference")) for item in items]
    places = decimals([value.mean for value in found if value])
    rows = []
    for item, value in zip(items, found):
        ends = (
            DASH
            if value is None or value.low is None
            else f"{_signed(value.low, places)} to {_signed(value.high, places)}"
        )
        pair = f"{item.get('a')} − {item.get('b')}"
        verdict = Cell(str(item.get("verdict") or DASH))
        centre = DASH if value is None else _signed(value.mean, places)
        rows.append([Cell(pair), Cell(_metric(item.get("metric"))), Cell(centre), Cell(ends), verdict])
    columns = [
        Column("difference", False),
        Column("of", False),
        Column("mean"),
        Column("95 % interval"),
        Column("verdict", False),
    ]
    return Table(columns, rows, "Paired differences; an interval that includes zero shows no difference.")


def _signed(value: float | None, places: int) -> str:
    return DASH if value is None else f"{value:+.{places}f}".replace("-", "−")


def _metric(name: Any) -> str:
    return {"fd": "FD train", "fd_held_out": "FD test"}.get(str(name), str(name))


def cost_table(record: Record, palette: Palette) -> Table | None:
    """What each method costs per sample and in training beyond the base, and what it gains."""
    rows = [row for row in record.rows if any(number(row.get(key)) is not None for key in ("nfe", "seconds_per_1000"))]
    if not rows:
        return None
    base = base_row(rows)
    total = number(record.part("costs").get("base_training_images"))
    gains = (("fd", "gain, train"), ("fd_held_out", "gain, test"))
    kept = [item for item in gains if any(_retained(row, item[0]) is not None for row in rows)]
    cells = []
    for row in rows:
        ours, theirs = number(row.get("nfe")), number((base or {}).get("nfe"))
        times = f"{ours / theirs:.2f}×" if ours and theirs else DASH
        extra = number(row.get("extra_training_images"))
        share = percent(extra / total) if extra is not None and total else DASH
        line = [_method_cell(row, palette), Cell(short_count(ours)), Cell(times)]
        line += [Cell(fixed(row.get("seconds_per_1000"))), Cell(short_count(extra)), Cell(share)]
        line += [Cell(DASH if row is base else percent(_retained(row, metric), 0)) for metric, _ in kept]
        cells.append(line)
    names = [
        "NFE",
        "of the base",
        "s / 1000 samples",
        "extra images",
        "of base training",
        *(title for _, title in kept),
    ]
    caption = (
        "Seconds are of the machine that ran this. Extra images: what a method spends beyond the base, its "
        "training and, at three network evaluations to an image, its samples and its search."
    )
    if kept:
        caption += " Gain: the improvement on the base in each FD, as a share of what sims reaches."
    return Table([Column("method", False), *map(Column, names)], cells, caption)


def training_facts(record: Record) -> list[Fact]:
    """What the run as a whole spent."""
    costs = record.part("costs")
    names = (
        ("base_training_images", "Base training", "images seen"),
        ("synthesized", "Synthesized", "images"),
        ("synthesis_evaluations", "Synthesis", "network evaluations"),
        ("auxiliary_images", "Auxiliary training", "images seen"),
        ("distillation_images", "Distillation", "images seen"),
        ("search_evaluations", "Search", "network evaluations"),
    )
    return [
        Fact(title, short_count(costs[key]), unit) for key, title, unit in names if number(costs.get(key)) is not None
    ]


def memorization_table(record: Record, palette: Palette) -> Table | None:
    """Share of suspiciously near samples, and the distance to the nearest training image against held-out images'."""
    rows = [row for row in record.rows if mean(row, "distance_ratio") is not None]
    if not rows:
        return None
    lines = []
    for row in rows:
        found = interval(row.get("memorized"))
        share = DASH if found is None else percent(found.mean, 2)
        lines.append([_method_cell(row, palette), Cell(share), Cell(fixed(mean(row, "distance_ratio"), 3))])
    caption = (
        "Nearest ratio: median distance to the nearest training image, samples over held-out images; "
        "1 is as far as held-out images are, less is nearer."
    )
    return Table([Column("method", False), Column("near share"), Column("nearest ratio")], lines, caption)


def class_table(record: Record, palette: Palette) -> Table | None:
    """Per class and method: share of the samples, agreement with the asked class, FD."""
    rows = [row for row in record.rows if row.get("per_class")]
    if not rows:
        return None
    classes = list(dict.fromkeys(str(item.get("class")) for row in rows for item in row["per_class"]))
    kinds = (("share", "share"), ("agreement", "agreement"), ("fd", "FD train"))
    kept = [k for k in kinds if any(number(item.get(k[0])) is not None for row in rows for item in row["per_class"])]
    if not kept:
        return None
    places = decimals([number(item.get("fd")) for row in rows for item in row["per_class"]])
    lines = []
    for name in classes:
        line = [Cell(name)]
        for row in rows:
            item: dict[str, Any] = next((found for found in row["per_class"] if str(found.get("class")) == name), {})
            for key, _ in kept:
                line.append(Cell(fixed(item.get(key), places) if key == "fd" else percent(item.get(key))))
        lines.append(line)
    groups = [("", 1), *((str(row.get("label") or row.get("method")), len(kept)) for row in rows)]
    columns = [Column("class", False), *(Column(title) for _ in rows for _, title in kept)]
    caption = (
        "Share: of all samples, by the extractor’s classifier. Agreement: samples that the classifier gives the class "
        "they were asked for. FD of a class is from few samples, so it is higher than the overall FD and noisier."
    )
    return Table(columns, lines, caption, groups)


def rounds_table(record: Record, palette: Palette) -> Table | None:
    """What each round reached, and whether it was kept."""
    items = [item for item in record.items("rounds") if isinstance(item, dict)]
    if not items:
        return None
    lines = []
    places = decimals([mean(row, "fd") for item in items for row in item.get("rows") or []])
    for item in items:
        verdict = "kept" if item.get("accepted") else "not kept"
        rows = item.get("rows") or [{}]
        for place, row in enumerate(rows):
            first = place == 0
            name = _method_cell(row, palette) if row else Cell(DASH)
            line = [Cell(str(item.get("round")) if first else ""), name, Cell(strength(row.get("w")))]
            line += [Cell(plus_minus(interval(row.get(metric)), places)) for metric in ("fd", "fd_held_out")]
            line += [Cell(verdict if first else ""), Cell(str(item.get("reason") or "") if first else "")]
            lines.append(line)
    columns = [Column("round", False), Column("method", False), *map(Column, ("w", "FD train", "FD test"))]
    return Table([*columns, Column("verdict", False), Column("reason", False)], lines)


def cells_table(record: Record, palette: Palette, names: dict[str, str]) -> Table | None:
    """Every setting of the search: a line per method, budget and number of samples, a column per w."""
    lines: dict[tuple[str, float, float], dict[float, float]] = {}
    for cell in search_cells(record):
        key = str(cell.get("method")), number(cell.get("budget")) or 0.0, number(cell.get("n")) or 0.0
        lines.setdefault(key, {})[float(cell["w"])] = cell["fd"]
    if not lines:
        return None
    strengths = sorted({w for found in lines.values() for w in found})
    places = decimals([fd for found in lines.values() for fd in found.values()])
    rows = []
    for (method, budget, n), found in sorted(lines.items()):
        row = [Cell(names.get(method, method), swatch=palette[method].variable), Cell(short_count(budget or None))]
        row.append(Cell(short_count(n or None)))
        low = min(found.values())
        row += [Cell(fixed(found.get(w), places), best=len(found) > 1 and found.get(w) == low) for w in strengths]
        rows.append(row)
    columns = [Column("method", False), Column("budget"), Column("samples")]
    caption = (
        "FD to the training images. Bold: lowest of the line. Lines of different numbers of samples do not compare."
    )
    return Table([*columns, *(Column(f"w\u00a0=\u00a0{strength(w)}") for w in strengths)], rows, caption)


def sampler_table(record: Record) -> Table | None:
    """The cheaper samplers that were tried, in that order, and how much of the gain each kept."""
    items = [item for item in record.part("cache").get("tried") or [] if isinstance(item, dict)]
    if not items:
        return None
    rows = [
        [
            Cell(str(item.get("solver") or "")),
            *(Cell(short_count(item.get(key))) for key in ("steps", "refreshes", "nfe")),
            Cell(percent(item.get("retained"))),
        ]
        for item in items
    ]
    caption = "Tried on the selection seeds, of which some scatter is left in the last column."
    names = ("steps", "corrections", "NFE", "gain kept")
    return Table([Column("solver", False), *map(Column, names)], rows, caption)


def stage_table(record: Record) -> Table | None:
    """Seconds per stage, and their share of the whole."""
    stages = [
        item for item in record.items("stages") if isinstance(item, dict) and number(item.get("seconds")) is not None
    ]
    total = sum(item["seconds"] for item in stages)
    if not stages or total <= 0:
        return None
    rows = [
        [Cell(str(item.get("name"))), Cell(duration(item["seconds"])), Cell(percent(item["seconds"] / total))]
        for item in stages
    ]
    return Table([Column("stage", False), Column("time"), Column("share")], rows)


def version_table(record: Record) -> Table | None:
    """Names and versions of what ran."""
    rows = [[Cell(name), Cell(str(value))] for name, value in record.part("versions").items()]
    return Table([Column("name", False), Column("version", False)], rows) if rows else None
